"""The streaming index of a data set: what its videos contain, and where.

It is built like a frame store, see :mod:`ivcl_fast.data.store.shards`. Its shards locate the
frames of Motion-JPEG videos. An index that is up to date is only read. One that is open stays
valid while another process replaces it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ivcl_fast.data.dataset import Media, named
from ivcl_fast.data.decode.indexed import Indexed, index_one
from ivcl_fast.data.decode.media import VideoInfo
from ivcl_fast.data.store.shards import Build, Part, Progress, read_index
from ivcl_fast.data.store.source import Source, VideoSource
from ivcl_fast.data.store.table import Columns, Index
from ivcl_fast.data.workers import STALL_SECONDS, WorkerPool, time_limit
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)


class StreamIndex(Index):
    """An open streaming index, with its shards in mapped memory."""

    def __init__(self, columns: Columns, about: Mapping[str, Any], folder: Path) -> None:
        super().__init__(columns, about, folder)
        self._places = [
            np.memmap(folder / file, np.int64, "r") if size else np.empty(0, np.int64)
            for file, size, *_ in about["shards"]
        ]

    def media(self, row: int) -> Indexed:
        """Return what the media in a row of the index contain."""
        is_located, info = json.loads(self.facts[row])
        places = None
        if is_located:
            start = int(self.columns["start"][row]) // 8
            shard = self._places[self.columns["shard"][row]]
            places = shard[start : start + 2 * info["frames"]].reshape(-1, 2)
        return Indexed(VideoInfo(**info), places)


def saved_index(
    media: Sequence[Media],
    folder: Path,
    workers: int,
    progress: Progress = lambda *_: None,
) -> StreamIndex:
    """Index media and save the index and ``bad_files.json`` in ``folder``, or read the index.

    Several processes may call it at the same time. ``progress`` is called with (media done, media
    in total). Raises :class:`UserError` if there are no media, or two with the same name.
    """
    settings = {"content": "index"}
    build = Build(VideoSource(media, "pyav"), folder, settings, append_info, "probing")
    with suppress(UserError):  # missing or damaged
        index = read_index(folder, StreamIndex)
        if build.is_current(index):
            return index
    with WorkerPool(workers) as pool:
        build.run(Part(0, 1), pool, progress)
    index = read_index(folder, StreamIndex)
    infos = {
        name: json.loads(facts)[1] for name, facts in zip(index.names, index.facts, strict=True)
    }
    odd = {name: info["warning"] for name, info in infos.items() if info["warning"]}
    if odd:
        log.warning("%d videos are used in spite of anomalies:\n%s", len(odd), named(odd))
    return index


def append_info(
    source: Source, name: str, settings: dict[str, Any], file: BinaryIO
) -> tuple[int, str]:
    """Append the frame positions of a video to its shard, and return what it contains; see
    :data:`~ivcl_fast.data.store.shards.Append`."""
    with time_limit(STALL_SECONDS):
        indexed = index_one(cast(VideoSource, source).media[name])
    if indexed.places is not None:
        file.write(indexed.places.tobytes())
    return indexed.info.frames, json.dumps([indexed.places is not None, asdict(indexed.info)])
