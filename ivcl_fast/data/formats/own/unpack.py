"""Videos that lie inside other files, unpacked once into a folder beside them.

Decoders, the frame store and streaming read files. A folder ``unpacked/<part>/`` has the files of a
part, such as a shard, and ``unpacked/<part>.json``, written last, says what they are and of which
state of the part. A part that changed is unpacked again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.own.labelled import Item
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

    ``state``: what JSON can hold and differs if the part has changed. ``videos`` reads the part.
    """
    folder = root / "unpacked" / part
    record = folder.with_name(f"{part}.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(root / "unpacked" / "lock"):  # so that only one rank writes
        found = _read(record)
        if found.get("state") != state:
            log.info("unpacking %s into %s", part, folder)
            record.unlink(missing_ok=True)
            remove_files(folder, WRITTEN)
            found = {
                "state": state,
                "videos": [_write(folder, n, v) for n, v in enumerate(videos())],
            }
            write_text(record, signed(found))
    return [
        Item(Media(name, tuple(folder / file for file in files)), tuple(labels), split)
        for name, files, labels in found["videos"]
    ]


def _read(record: Path) -> dict[str, Any]:
    """Read what was unpacked; nothing if that was never finished, or the record is damaged."""
    try:
        return check_signed(read_bytes(record))
    except FileNotFoundError:
        return {}
    except ValueError:
        log.warning("%s: damaged, so its part is unpacked again", record)
        return {}


def _write(folder: Path, number: int, video: Packed) -> tuple[str, list[str], tuple[str, ...]]:
    """Write a video under its number: names inside other files may be anything."""
    stem, files = f"{number:06d}", []
    for at, (suffix, content) in enumerate(video.files):
        name = f"{stem}{suffix}" if len(video.files) == 1 else f"{stem}/{at:05d}{suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        files.append(name)
    return video.name, files, video.labels
