"""``videos:DIR``: a folder of videos, with a folder for each class if they have classes.

Layouts, in which a video is a file or a folder of images, one per frame::

    DIR/a.mp4, DIR/any/b.avi                  without classes: videos lie in DIR itself
    DIR/<class>/a.mp4                         a folder for each class
    DIR/train/<class>/a.mp4, DIR/val/...      the same, with splits (also validation, test)
    DIR/train/a.mp4, DIR/val/...              splits without classes
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path, PurePosixPath

from ivcl_fast.data.clip import image_order
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.images import image_size, is_image
from ivcl_fast.data.formats.custom.labelled import (
    SPLIT_NAMES,
    TASK,
    TRAIN,
    VAL_FRACTION,
    Item,
    LabelledVideos,
)
from ivcl_fast.errors import UserError
from ivcl_fast.manifest import MANIFEST

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".gif", ".mpg", ".mpeg", ".wmv", ".flv",
    ".3gp", ".ogv", ".ts", ".mts", ".m2ts",
)  # fmt: skip
SAMPLE = 8
"""Number of pictures of which the sizes are compared."""
_OURS = re.compile(r"store-\d|index$")  # folders of frame stores and of the index
_RUN = {"config.json", MANIFEST}  # files of every run


class VideoFolder(LabelledVideos):
    """The videos of a folder; see :class:`LabelledVideos`.

    Example::

        >>> dataset = VideoFolder(Path("cats_and_dogs"))
        >>> dataset.describe(dataset.clips("val")[0].label)
    """

    def __init__(self, root: Path, task: str = TASK, val_fraction: float = VAL_FRACTION) -> None:
        """List the videos; raises :class:`UserError` if there are none or the layout is unclear."""
        root = Path(root)
        if root.is_file():
            raise UserError(f"{root}: is a file; accepted: its folder, or csv:FILE for a list")
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; accepted: a folder with videos")
        found = find_videos(root)
        if not found:
            raise UserError(
                f"{root}: holds no videos; accepted: files with the ending "
                f"{', '.join(VIDEO_SUFFIXES)}, and folders of PNG or JPEG frames"
            )
        super().__init__(root, _items(root, found), val_fraction)


def find_videos(root: Path) -> list[Media]:
    """List the videos below a folder by their paths relative to it, sorted.

    Hidden files and folders are passed over, runs, whose pictures are no videos, and what else is
    no video; the number of these files is logged. Folders that cannot be read are named.
    """
    media, others = list[Media](), list[Path]()

    def warn(error: OSError) -> None:
        log.warning("%s: left out, as it cannot be read: %s", error.filename, error.strerror)

    for place, folders, files in os.walk(root, followlinks=True, onerror=warn):
        folder = Path(place)
        if folder != root and folder.resolve() in (parent.resolve() for parent in folder.parents):
            folders.clear()  # a link back to a folder above
            continue
        if folder != root and _RUN.issubset(files):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [folder / name for name in files if not name.startswith(".")]
        videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        media += [Media(_name(path, root), (path,)) for path in videos]
        images = [path for path in paths if is_image(path)]
        if images and not videos and not folders:
            media.append(Media(_name(folder, root), tuple(sorted(images, key=image_order))))
            videos = images
        if not _OURS.match(_name(folder, root)):
            others += set(paths).difference(videos)
    if others:
        log.info("%s: %d files are no videos, such as %s", root, len(others), min(others))
    return sorted(media, key=lambda one: one.name)


def _name(path: Path, root: Path) -> str:
    return root.resolve().name if path == root else path.relative_to(root).as_posix()


def _items(root: Path, found: list[Media]) -> list[Item]:
    tops = {one.name: PurePosixPath(one.name).parts for one in found}
    firsts = {parts[0] for parts in tops.values() if len(parts) > 1}
    splits = {name for name in firsts if name.lower() in SPLIT_NAMES}
    has = f"{root}: has {', '.join(f'{name}/' for name in sorted(splits))}, but"
    _check_pictures(root, found, splits)
    outside = [name for name, parts in tops.items() if parts[0] not in splits]
    if TRAIN not in {SPLIT_NAMES[name.lower()] for name in splits}:
        if not outside:
            raise UserError(
                f"{has} no train/; accepted: train/ beside them, or classes with other names"
            )
        return _labelled(root, found, TRAIN, depth=0)
    if outside:
        raise UserError(
            f"{has} {len(outside)} videos are outside them, such as {outside[0]}; accepted: all "
            "videos in one of them"
        )
    items: list[Item] = []
    for folder in sorted(splits):
        split = SPLIT_NAMES[folder.lower()]
        own = [one for one in found if tops[one.name][0] == folder]
        items += _labelled(root / folder, own, split, depth=1)
    return items


def _check_pictures(root: Path, found: list[Media], splits: set[str]) -> None:
    """Refuse a folder of pictures for each class, which would be one video for each class."""
    folders = [one for one in found if is_image(one.files[0])]
    if len(folders) < len(found):
        return
    inside = [parts for one in found if len(parts := PurePosixPath(one.name).parts) == 2]
    per_split = [{name for split, name in inside if split == folder} for folder in sorted(splits)]
    if len(per_split) > 1 and set.intersection(*per_split):
        how = f"{sorted(set.intersection(*per_split))[0]}/ is a folder of pictures in every split"
    elif (first := min(folders, key=lambda one: one.name)) and not _same_size(first.files):
        how = f"the pictures in {first.name}/ have different sizes, so they are no frames"
    else:
        return
    raise UserError(
        f"videos:{root}: {how}; expected videos, or a folder of frames for each video, in folders "
        "of classes such as cat/video1/; for pictures, put each into a folder of its own"
    )


def _same_size(files: tuple[Path, ...]) -> bool:
    """Whether the first pictures have one size; damaged ones count as equal."""
    sizes = set()
    for file in files[:SAMPLE]:
        with contextlib.suppress(VideoError, OSError):
            if file.is_file():
                sizes.add(image_size(file.read_bytes()))
    return len(sizes) <= 1


def _labelled(place: Path, found: list[Media], split: str, depth: int) -> list[Item]:
    """Take the folder at ``depth`` for the class, unless videos lie beside the folders."""
    parts = [PurePosixPath(one.name).parts for one in found]
    if beside := [path[-1] for path in parts if len(path) == depth + 1]:
        if len(beside) < len(parts):
            log.warning(
                "%s: its folders are no classes, as it has %d videos beside them, such as %s",
                place, len(beside), beside[0],
            )  # fmt: skip
        return [Item(one, (), split) for one in found]
    return [Item(one, (path[depth],), split) for one, path in zip(found, parts, strict=True)]
