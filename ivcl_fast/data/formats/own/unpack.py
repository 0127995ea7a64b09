"""Videos that lie inside other files, unpacked once into a folder beside them.

Decoders, the frame store and streaming read files. A folder ``unpacked/<part>/`` has the files of a
part, such as a shard, and ``unpacked/<part>.json``, written last, says what they are and of which
state of the part. A part that changed is unpacked again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.own.labelled import Item
from ivcl_fast.files import locked, write_json

log = logging.getLogger(__name__)


class Packed(NamedTuple):
    """A video inside another file."""

    name: str
    """Unique in the data set."""
    files: list[tuple[str, bytes]]
    """Suffix and content of the video's file, or of the files of its frames in order."""
    labels: tuple[str, ...]


def unpacked(
    root: Path, part: str, state: object, split: str, videos: Callable[[], Iterable[Packed]]
) -> list[Item]:
    """Return the videos of a part, unpacked into ``root`` unless that has been done.

    ``state``: what JSON can hold and differs if the part has changed. ``videos`` reads the part.
    """
    folder = root / "unpacked" / part
    record = folder.with_name(f"{part}.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(root / "unpacked" / "lock"):  # so that only one rank writes
        found = json.loads(record.read_text()) if record.is_file() else {}
        if found.get("state") != state:
            log.info("unpacking %s into %s", part, folder)
            record.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            found = {
                "state": state,
                "videos": [_write(folder, n, v) for n, v in enumerate(videos())],
            }
            write_json(record, found)
    return [
        Item(Media(name, tuple(folder / file for file in files)), tuple(labels), split)
        for name, files, labels in found["videos"]
    ]


def _write(folder: Path, number: int, video: Packed) -> tuple[str, list[str], tuple[str, ...]]:
    """Write a video under its number: names inside other files may be anything."""
    stem, files = f"{number:06d}", []
    for at, (suffix, content) in enumerate(video.files):
        name = f"{stem}{suffix}" if len(video.files) == 1 else f"{stem}/{at:05d}{suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        files.append(name)
    return video.name, files, video.labels
