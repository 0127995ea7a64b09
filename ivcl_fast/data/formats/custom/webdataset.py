"""``webdataset:PATTERN``: tar files as the ``webdataset`` package writes them.

A shard is a sequence of samples; the files of a sample have the same name up to the first dot. Its
video is a video file, or images ordered by name::

    000017.mp4, 000017.cls           a class: a number or a name
    000018.webm, 000018.json         {"label": "dog"}, or several: {"labels": ["dog", "cat"]}
    000019.0001.jpg, 000019.0002.jpg, 000019.cls

The pattern may contain ``{000..009}``, ``{train,val}``, ``*`` and ``?``. A shard belongs to the
split that its name contains as a word, or that its folder is called.
"""

from __future__ import annotations

import glob
import hashlib
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
    NO_LABEL,
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
MOST_DIGITS = 6
"""Digits of the numbers in a pattern; expanding longer ones would take hours."""
CHUNK = 2**20
NOT_INSTALLED = (
    "webdataset: the package is not installed; install it with pip install 'ivcl_fast[webdataset]'"
)
LABEL_KEYS = ("label", "labels", "class", "classes", "category")
"""Keys for the label in a sample's JSON file; the first one present is read."""
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")


class WebDataset(LabelledVideos):
    """The videos of tar shards, unpacked once into a folder beside them."""

    def __init__(self, pattern: Path, task: str = TASK, val_fraction: float = VAL_FRACTION) -> None:
        """Unpack the shards; raises :class:`UserError` for missing and damaged ones."""
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
            items = unpacked(root, part, state, split_of(shard), partial(read_shard, shard))
            found += [(place, item) for item in items]
        times = Counter(item.media.name for _, item in found)
        named = []
        for place, item in found:
            name, files = item.media.name, item.media.files
            if times[name] > 1:  # keys may begin anew in every shard
                name = name_of(f"{place}/{name}")
            named.append(item._replace(media=Media(name, files)))
        super().__init__(root, named, val_fraction)


def find_shards(pattern: str) -> list[Path]:
    """Return the shards of a pattern in order; raises :class:`UserError` if one is missing."""
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise UserError(NOT_INSTALLED) from None
    if max(map(len, re.findall(r"\d+(?=\.\.|\})", pattern)), default=0) > MOST_DIGITS:
        raise UserError(
            f"webdataset: {pattern[:100]}: expected numbers of up to {MOST_DIGITS} digits in braces"
        )
    try:
        expanded = list(braceexpand(pattern))
    except ValueError as error:  # unbalanced braces
        raise UserError(f"webdataset: {pattern[:100]}: {error}") from None
    shards: list[Path] = []
    for one in expanded:
        is_pattern = glob.has_magic(one) and not os.path.isfile(one)  # [ may be part of a name
        found = sorted(glob.glob(one)) if is_pattern else [one]
        if not found or not all(map(os.path.isfile, found)):
            raise UserError(
                f"webdataset: {one}: expected tar files, such as DIR/train-{{000..009}}.tar or "
                "'DIR/*.tar', got no such file"
            )
        shards += map(Path, found)
    return list(dict.fromkeys(shards))


def split_of(shard: Path) -> str:
    """Return the split of a shard by its name, else by that of its folder."""
    if found := _SPLIT.search(shard.name.lower()):
        return SPLIT_NAMES[found[1]]
    return SPLIT_NAMES.get(shard.absolute().parent.name.lower(), TRAIN)


def read_shard(shard: Path) -> Iterator[Packed]:
    """Read the videos of a shard.

    Raises :class:`UserError` if the shard is not complete or a label cannot be read.
    """
    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError:
        raise UserError(NOT_INSTALLED) from None
    check_shard(shard)
    keys: set[str] = set()
    with shard.open("rb") as stream:
        source = [{"stream": stream, "url": str(shard)}]
        for sample in group_by_keys(tar_file_expander(source)):
            key = sample["__key__"]
            if key in keys:
                raise UserError(
                    f"webdataset: {shard}: expected the files of a sample one after another, as "
                    f"tar --sort=name writes them, got others between those of {key}"
                )
            keys.add(key)
            files = {ext: data for ext, data in sample.items() if not ext.startswith("__")}
            if video := _video(shard, key, files):
                yield video


def check_shard(shard: Path) -> None:
    """Raise :class:`UserError` unless a tar file is complete: two blocks of zeros, then only zeros.

    Python takes a damaged header for the end of the file.
    """
    try:
        with tarfile.open(shard, "r:*") as tar:
            for member in tar:
                if member.islnk() or member.issym():
                    raise tarfile.TarError(f"{member.name} is a link")
                if member.size > MOST_BYTES:  # of a compressed file, it may be only zeros
                    raise tarfile.TarError(f"{member.name} has {member.size:,} bytes")
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            zeros = 0
            while block := tar.fileobj.read(CHUNK):
                if block.count(0) < len(block):
                    raise tarfile.TarError(f"damaged after byte {tar.offset:,}, or two files")
                zeros += len(block)
            if zeros < 2 * tarfile.BLOCKSIZE:
                raise EOFError("its end is missing")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(":\n")[0]  # without the reasons for each compression
        raise UserError(
            f"webdataset: {shard}: expected a complete tar file with files of up to "
            f"{MOST_BYTES:,} bytes, got: {reason}"
        ) from None


def _video(shard: Path, key: str, files: dict[str, bytes]) -> Packed | None:
    """Return the video of a sample, or None if it has none."""
    suffixes = {ext: PurePosixPath(f"x.{ext}").suffix for ext in files}
    videos = [ext for ext, suffix in suffixes.items() if suffix in VIDEO_SUFFIXES]
    images = [ext for ext in files if is_image(Path(f"x.{ext}"))]
    if len(videos) > 1:
        raise UserError(f"webdataset: {shard}: {key}: expected one video, got {len(videos)}")
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
        raise UserError(f"webdataset: {shard}: the label of {key}: {error}") from None
    missing = found is None or found in NO_LABEL
    labels = found if isinstance(found, list) else [] if missing else [found]
    if not all(type(label) in (int, str) for label in labels):
        raise UserError(
            f"webdataset: {shard}: the label of {key}: expected numbers or names, got {found!r}"
        )
    return tuple(dict.fromkeys(map(str, labels)))
