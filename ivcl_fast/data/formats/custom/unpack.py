"""Videos that lie inside other files, unpacked once into a folder beside them.

Decoders, the frame store and streaming read files. A folder ``unpacked/<part>/`` has the files of a
part, such as a shard, and ``unpacked/<part>.json``, written last, says what they are and of which
state of the part. A part that changed is unpacked again, and so is one of which a file is missing
or has another size than it was written with. What is complete is read without writing anything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.custom.labelled import Item
from ivcl_fast.files import locked, read_bytes, remove_files, write_text
from ivcl_fast.manifest import check_signed, signed

log = logging.getLogger(__name__)

_STEM = "[0-9]" * 6
WRITTEN = (f"{_STEM}.*", f"{_STEM}/{'[0-9]' * 5}.*")
"""Patterns of the files of a part."""


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

    ``part``: unique in ``root``. ``state``: what JSON can hold and differs if the part has changed.
    ``videos`` reads the part.
    """
    folder = root / "unpacked" / part
    record = folder.with_name(f"{part}.json")
    found = _read(record, folder, state)
    if not found:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name("lock")):  # so that only one rank writes
            found = _read(record, folder, state)
            if not found:
                log.info("unpacking %s into %s", part, folder)
                record.unlink(missing_ok=True)
                remove_files(folder, WRITTEN)
                written = [_write(folder, n, v) for n, v in enumerate(videos())]
                sizes = {f: os.path.getsize(folder / f) for _, files, _ in written for f in files}
                found = {"state": state, "videos": written, "sizes": sizes}
                write_text(record, signed(found))
    return [
        Item(Media(name, tuple(folder / file for file in files)), tuple(labels), split)
        for name, files, labels in found["videos"]
    ]


def _read(record: Path, folder: Path, state: object) -> dict[str, Any]:
    """Read what was unpacked; nothing unless all of it is there, of this state of the part."""
    try:
        found = check_signed(read_bytes(record))
    except (FileNotFoundError, ValueError):  # never finished, or damaged
        return {}
    sizes: dict[str, int] = found.get("sizes", {})
    is_complete = found.get("state") == state and all(
        os.path.isfile(folder / file) and os.path.getsize(folder / file) == size
        for file, size in sizes.items()
    )
    return found if is_complete else {}


def _write(folder: Path, number: int, video: Packed) -> tuple[str, list[str], tuple[str, ...]]:
    """Write a video under its number: names inside other files may be anything."""
    stem, files = f"{number:06d}", []
    for at, (suffix, content) in enumerate(video.files):
        name = f"{stem}{suffix}" if len(video.files) == 1 else f"{stem}/{at:05d}{suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        files.append(name)
    return video.name, files, video.labels
