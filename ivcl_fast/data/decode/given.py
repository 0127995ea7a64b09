"""Media that a user points at, of no data set: a video file, or a folder of images."""

from __future__ import annotations

import re
from pathlib import Path

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.images import is_image


def given_media(path: Path, frames: int | None) -> Media:
    """The video file ``path``, or the images of the folder ``path`` in the order of their names.

    ``frames``: of every clip of the data set, where that says so (see
    :class:`~ivcl_fast.data.registry.Kind`); then only a folder of so many images will do. Numbers
    in names count by their value. Raises :class:`VideoError` for anything else.
    """
    if frames is None:
        accepted = "a video file, or a folder with its frames as images"
    else:
        accepted = (
            f"a folder with {frames} images in the order of their names, {frames - 1} of context, "
            "then the query"
        )
    if path.is_dir():
        files = [file for file in path.iterdir() if is_image(file)]
        if not files or frames not in (None, len(files)):
            raise VideoError(f"holds {len(files) or 'no'} images; accepted: {accepted}")
        return Media(path.resolve().name, tuple(sorted(files, key=place_of)))
    if not path.exists():
        raise VideoError(f"no such file or folder; accepted: {accepted}")
    if frames is not None or is_image(path):
        raise VideoError(
            f"is a single {'image' if is_image(path) else 'file'}; accepted: {accepted}"
        )
    return Media(path.stem, (path,))


def place_of(path: Path) -> list[str | int]:
    """What to sort by: text and numbers of the name by turns, so that 10 comes after 9."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if at % 2 else part for at, part in enumerate(parts)]
