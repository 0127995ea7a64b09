"""``webdataset:PATTERN``: tar files as the ``webdataset`` package writes them.

A shard holds samples one after another; the files of a sample have the same name up to the first
dot. Its video is a file with a video's ending, or several images in the order of their names::

    000017.mp4, 000017.cls           a class: a number or a name
    000018.webm, 000018.json         {"label": "dog"}, or several: {"labels": ["dog", "cat"]}
    000019.0001.jpg, 000019.0002.jpg, 000019.cls

The pattern may contain ``{000..009}``, ``{train,val}``, ``*`` and ``?``. A shard whose name
contains train, val or test as a word, or whose folder is called so, belongs to that split.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ivcl_fast.data.clip import image_order
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.images import is_image
from ivcl_fast.data.formats.custom.labelled import (
    SPLIT_NAMES,
    TASK,
    TRAIN,
    VAL_FRACTION,
    LabelledVideos,
    name_of,
)
from ivcl_fast.data.formats.custom.unpack import Packed, unpacked
from ivcl_fast.data.formats.custom.video_folder import VIDEO_SUFFIXES
from ivcl_fast.errors import UserError

MOST_BYTES = 2**30
"""Largest file of a sample."""
LABEL_KEYS = ("label", "labels", "class", "classes", "category")
"""Keys of a sample's JSON file that are read as its label, the first that is there."""

_RANGE, _CHOICE = re.compile(r"\{(\d+)\.\.(\d+)\}"), re.compile(r"\{([^{}]*)\}")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")
_MEMBER = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]*)")  # up to the first dot of the file name


class WebDataset(LabelledVideos):
    """The videos of tar shards, which are unpacked once into a folder beside them."""

    def __init__(self, pattern: Path, task: str = TASK, val_fraction: float = VAL_FRACTION) -> None:
        """Unpack the shards; raises :class:`UserError` if there are none, or one is damaged."""
        shards = find_shards(str(pattern))
        plain = re.sub(r"\{[^}]*\}|[*?\[\]]", "", pattern.name).removesuffix(".tar").strip("-_.")
        root = shards[0].parent / f"{plain or 'shards'}-data"
        found = []
        for shard in shards:
            status = shard.stat()
            # Shards of several folders may have the same name, and all may be moved together.
            place = os.path.relpath(shard, root.parent)
            state = [place, status.st_size, status.st_mtime_ns]
            digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
            part = f"{shard.stem}-{digest}"
            own = unpacked(root, part, state, split_of(shard), partial(read_shard, shard))
            found += [(place, item) for item in own]
        times = Counter(item.media.name for _, item in found)
        items = [  # keys may begin anew in every shard
            item
            if times[item.media.name] == 1
            else item._replace(media=Media(name_of(f"{place}/{item.media.name}"), item.media.files))
            for place, item in found
        ]
        super().__init__(root, items, val_fraction)


def find_shards(pattern: str) -> list[Path]:
    """Return the files of a pattern, in order; raises :class:`UserError` if one is missing."""
    shards: list[Path] = []
    for one in [*_expanded(pattern)] or [pattern]:
        is_pattern = glob.has_magic(one) and not os.path.isfile(one)  # [ may be part of a name
        found = sorted(glob.glob(one)) if is_pattern else [one]
        if not found or not all(Path(path).is_file() for path in found):
            raise UserError(
                f"{one}: no such shard; accepted: a pattern of tar files, such as "
                "DIR/train-{000..009}.tar or 'DIR/*.tar'"
            )
        shards += map(Path, found)
    return list(dict.fromkeys(shards))


def _expanded(pattern: str) -> Iterator[str]:
    """Expand the first braces, and those after them."""
    if match := _RANGE.search(pattern):
        first, last = match.groups()
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    elif match := _CHOICE.search(pattern):
        choices = match[1].split(",")
    else:
        yield pattern
        return
    for choice in choices:
        yield from _expanded(pattern[: match.start()] + choice + pattern[match.end() :])


def split_of(shard: Path) -> str:
    """Return the split that the name of a shard tells, or that its folder is called."""
    if found := _SPLIT.search(shard.name.lower()):
        return SPLIT_NAMES[found[1]]
    return SPLIT_NAMES.get(shard.absolute().parent.name.lower(), TRAIN)


def read_shard(shard: Path) -> Iterator[Packed]:
    """Read the samples of a shard that have a video.

    Raises :class:`UserError` if the shard is not complete, or a label cannot be read.
    """
    keys: set[str] = set()
    accepted = f"accepted: a complete tar file, of files of up to {MOST_BYTES:,} bytes"
    try:
        with tarfile.open(shard, "r:*") as tar:
            for key, group in itertools.groupby(_members(tar), key=lambda found: found[0]):
                if key in keys:
                    raise UserError(
                        f"{shard}: the files of {key} are apart; accepted: all files of a sample "
                        "one after another, as tar --sort=name writes them"
                    )
                keys.add(key)
                if video := _video(shard, key, {ext: content for _, ext, content in group}):
                    yield video
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if len(tar.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:  # of zeros, the end
                raise EOFError("its end is missing")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(":\n")[0]  # without what each kind of compression says
        raise UserError(f"{shard}: cannot be read ({reason}); {accepted}") from None


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """Yield key, extension and content of the files."""
    for member in tar:
        match = _MEMBER.fullmatch(member.name)
        if not member.isfile() or not match or member.name.startswith("__"):
            continue
        if member.size > MOST_BYTES:  # of a compressed archive, it may be only zeros
            raise tarfile.TarError(f"{member.name} has {member.size:,} bytes")
        file = tar.extractfile(member)
        content = file.read() if file else b""
        if len(content) < member.size:
            raise EOFError(f"{member.name} is cut")
        yield match[1], match[2].lower(), content


def _video(shard: Path, key: str, files: dict[str, bytes]) -> Packed | None:
    """Return the video of a sample, or None if it has none; other files are passed over."""
    suffixes = {ext: PurePosixPath(f"x.{ext}").suffix for ext in files}
    videos = [ext for ext, suffix in suffixes.items() if suffix in VIDEO_SUFFIXES]
    images = [ext for ext in files if is_image(Path(f"x.{ext}"))]
    if len(videos) > 1:
        raise UserError(f"{shard}: {key} has {len(videos)} videos; accepted: one in a sample")
    if not videos and not images:
        return None
    chosen = videos or sorted(images, key=lambda ext: image_order(Path(f"{ext}")))
    name = name_of(f"{key}.{videos[0]}" if videos else key)
    return Packed(name, [(suffixes[ext], files[ext]) for ext in chosen], _labels(shard, key, files))


def _labels(shard: Path, key: str, files: dict[str, bytes]) -> tuple[str, ...]:
    found: Any = None
    try:
        if "cls" in files:
            found = files["cls"].decode().strip()
        elif "json" in files and isinstance(about := json.loads(files["json"]), dict):
            found = next((about[name] for name in LABEL_KEYS if name in about), None)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shard}: the label of {key} cannot be read: {error}") from None
    parts = found if isinstance(found, list) else [] if found in (None, "") else [found]
    if any(isinstance(part, dict | list | float | bool) or part is None for part in parts):
        raise UserError(f"{shard}: the label of {key} is {found!r}; accepted: numbers or names")
    return tuple(dict.fromkeys(map(str, parts)))
