"""``videos:DIR``: a folder of videos, with a folder for each class if they have classes.

Layouts::

    DIR/a.mp4, DIR/any/b.avi                  without classes: videos lie in DIR itself
    DIR/<class>/a.mp4                         a folder for each class
    DIR/<class>/<video>/0001.png, ...         the same, with a folder of frames for each video
    DIR/train/<class>/a.mp4, DIR/val/...      with splits (also validation, test)
    DIR/train/a.mp4, DIR/val/...              splits without classes
"""

from __future__ import annotations

import logging
import os
from pathlib import Path, PurePosixPath

from ivcl_fast.data.clip import image_order
from ivcl_fast.data.dataset import Media, is_image
from ivcl_fast.data.formats.custom.labelled import (
    SPLIT_NAMES,
    TASK,
    TRAIN,
    VIDEO_SUFFIXES,
    Item,
    LabelledVideos,
)
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)


class VideoFolder(LabelledVideos):
    """The videos of a folder; see :class:`LabelledVideos`.

    Example::

        >>> dataset = VideoFolder(Path("cats_and_dogs"))
        >>> dataset.describe(dataset.clips("val")[0].label)
    """

    def __init__(self, root: Path, task: str = TASK) -> None:
        """List the videos; raises :class:`UserError` if there are none or the layout is unclear."""
        root = Path(root)
        if not root.is_dir():
            got = "a file" if root.is_file() else "no such folder"
            raise UserError(f"videos:{root}: expected a folder of videos, got {got}")
        found = find_videos(root)
        if not found:
            raise UserError(
                f"videos:{root}: expected files that end in {', '.join(VIDEO_SUFFIXES)}, or "
                "folders of PNG or JPEG frames, got none"
            )
        super().__init__(root, _items(root, found))


def find_videos(root: Path) -> list[Media]:
    """List the videos below a folder, sorted by their paths relative to it.

    Skips hidden files, other files, and the folders of runs, which may contain pictures and
    animations. Raises :class:`UserError` for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    media, seen = list[Media](), set[str]()
    for place, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real, folder = os.path.realpath(place), Path(place)
        is_run = {"config.json", "metrics.jsonl"}.issubset(files)
        if real in seen or (is_run and folder != root):  # a link may lead upwards
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [folder / name for name in files if not name.startswith(".")]
        videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        media += [Media(path.relative_to(root).as_posix(), (path,)) for path in videos]
        images = [path for path in paths if is_image(path)]
        if images and not videos and not folders:
            name = root.resolve().name if folder == root else folder.relative_to(root).as_posix()
            media.append(Media(name, tuple(sorted(images, key=image_order))))
    return sorted(media, key=lambda one: one.name)


def _items(root: Path, found: list[Media]) -> list[Item]:
    firsts = {one.name.partition("/")[0] for one in found if "/" in one.name}
    folders = sorted(name for name in firsts if name.lower() in SPLIT_NAMES)
    if not folders:
        return _labelled(root, found, TRAIN, depth=0)
    if TRAIN not in {SPLIT_NAMES[name.lower()] for name in folders}:
        raise UserError(f"videos:{root}: expected train/ beside {folders[0]}/")
    if outside := [one.name for one in found if one.name.partition("/")[0] not in folders]:
        raise UserError(
            f"videos:{root}: expected all videos in {', '.join(f'{name}/' for name in folders)}, "
            f"got {outside[0]}"
        )
    items: list[Item] = []
    for name in folders:
        inside = [one for one in found if one.name.startswith(f"{name}/")]
        items += _labelled(root / name, inside, SPLIT_NAMES[name.lower()], depth=1)
    return items


def _labelled(place: Path, found: list[Media], split: str, depth: int) -> list[Item]:
    """Take the folder at ``depth`` as the class, unless there are videos beside the folders."""
    parts = [PurePosixPath(one.name).parts for one in found]
    for one, path in zip(found, parts, strict=True):
        if is_image(one.files[0]) and len(path) < depth + 2:  # frames, or pictures of a class?
            folder = path[-1]
            raise UserError(
                f"videos:{place}: expected videos, or a folder of frames for each video in a "
                f"folder for each class, such as {folder}/video1/0001.png, got pictures in "
                f"{folder}/; without classes, put all folders of frames into one folder"
            )
    if beside := [path[-1] for path in parts if len(path) == depth + 1]:
        if len(beside) < len(parts):
            log.warning(
                "%s: read without classes, because videos lie beside its folders, such as %s",
                place, beside[0],
            )  # fmt: skip
        return [Item(one, (), split) for one in found]
    return [Item(one, (path[depth],), split) for one, path in zip(found, parts, strict=True)]
