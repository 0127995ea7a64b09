"""The index of streaming: what the videos of a data set contain.

It is built like a frame store, without frames, and is only read if it is up to date.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

from ivcl_fast.data.dataset import Media, named
from ivcl_fast.data.decode.media import VideoInfo
from ivcl_fast.data.decode.pyav import probe
from ivcl_fast.data.store.shards import Build, Part, Progress
from ivcl_fast.data.store.source import Source, VideoSource
from ivcl_fast.data.store.table import Index, decoded, read_index
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)


def saved_index(
    media: Sequence[Media],
    folder: Path,
    workers: int,
    progress: Progress = lambda *_: None,
) -> Index:
    """Probe media and save the index and ``bad_files.json`` in ``folder``, or read the index.

    Several processes may call it at the same time. ``progress`` is called with (media done, media
    in total). Raises :class:`UserError` if there are no media, or two with the same name.
    """
    build = Build(VideoSource(media, "pyav"), folder, {"content": "index"}, append_info)
    with suppress(UserError):  # missing or damaged
        index = read_index(folder)
        if build.is_current(index):
            return index
    with WorkerPool(workers) as pool:
        build.run(Part(0, 1), pool, progress)
    index = read_index(folder)
    warnings = (info_of(index, row).warning for row in range(len(index)))
    odd = {decoded(name): why for name, why in zip(index.names, warnings, strict=True) if why}
    if odd:
        log.warning("%d videos are used in spite of anomalies:\n%s", len(odd), named(odd))
    return index


def info_of(index: Index, row: int) -> VideoInfo:
    """Return what the media in a row of the index contain."""
    return VideoInfo(**json.loads(index.columns["facts"][row]))


def append_info(
    source: Source, name: str, settings: dict[str, Any], file: BinaryIO
) -> tuple[int, str]:
    """Return what a video contains; see :data:`~ivcl_fast.data.store.shards.Append`."""
    info = probe(cast(VideoSource, source).media[name])
    return info.frames, json.dumps(asdict(info))
