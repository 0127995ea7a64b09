"""Unpack videos that are inside other files, once, into a folder beside them.

``unpacked/<part>/`` holds the files of a part, such as a shard. ``unpacked/<part>.json`` is written
last and records the state of the part; a part that changed is unpacked again. A finished part is
read without writing anything.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.custom.labelled import Item
from ivcl_fast.files import locked, write_text

log = logging.getLogger(__name__)


class Packed(NamedTuple):
    """A video inside another file."""

    name: str
    """Unique in the data set."""
    files: list[tuple[str, bytes]]
    """Suffix and content of the video file, or of the image file of each frame."""
    labels: tuple[str, ...]


def unpacked(
    root: Path, part: str, state: object, split: str, videos: Callable[[], Iterable[Packed]]
) -> list[Item]:
    """Return the videos of a part, and unpack them into ``root`` first if necessary.

    ``part``: unique in ``root``. ``state``: a JSON value that changes if the part does.
    ``videos`` reads the part.
    """
    folder = root / "unpacked" / part
    record = folder.with_name(f"{part}.json")

    def recorded() -> list[Any] | None:
        found = json.loads(record.read_text()) if record.is_file() else {}
        return found["videos"] if found.get("state") == state else None

    found = recorded()
    if found is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent, busy="filled"):  # one rank unpacks, the others wait
            found = recorded()
            if found is None:
                log.info("unpacking %s into %s", part, folder)
                record.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                found = [_write(folder, *pair) for pair in enumerate(videos())]
                write_text(record, json.dumps({"state": state, "videos": found}))
    return [
        Item(Media(name, tuple(folder / file for file in files)), tuple(labels), split)
        for name, files, labels in found
    ]


def _write(folder: Path, number: int, video: Packed) -> tuple[str, list[str], tuple[str, ...]]:
    """Write a video under its number, because its name may not be a valid file name."""
    files = []
    for at, (suffix, content) in enumerate(video.files):
        inside = f"/{at:05d}" if len(video.files) > 1 else ""
        name = f"{number:06d}{inside}{suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        files.append(name)
    return video.name, files, video.labels
