"""``webdataset:PATTERN``: tar files as the ``webdataset`` package writes them.

A shard is a sequence of samples; the files of a sample have the same name up to the first dot. Its
video is a video file, or images ordered by name::

    000017.mp4, 000017.cls           a class: a number or a name
    000018.webm, 000018.json         {"label": "dog"}, or several: {"labels": ["dog", "cat"]}
    000019.0001.jpg, 000019.0002.jpg, 000019.cls

The pattern may contain ``{000..009}``, ``{train,val}``, ``*`` and ``?``. The split of a
shard is a word in its name, or the name of its folder.
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
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from ivcl_fast.data.clip import image_order
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.media import is_image
from ivcl_fast.data.formats.custom.labelled import (
    SPLIT_NAMES,
    TASK,
    TRAIN,
    VAL_FRACTION,
    VIDEO_SUFFIXES,
    Item,
    LabelledVideos,
    find_column,
    labels_in,
    name_of,
)
from ivcl_fast.data.formats.custom.unpack import Packed, unpacked
from ivcl_fast.errors import UserError

CHUNK = 2**20
NOT_INSTALLED = (
    "webdataset: the package is not installed; install it with pip install 'ivcl_fast[webdataset]'"
)
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")


class WebDataset(LabelledVideos):
    """The videos of tar shards, unpacked once into a folder beside them."""

    def __init__(self, pattern: Path, task: str = TASK, val_fraction: float = VAL_FRACTION) -> None:
        """Unpack the shards; raises :class:`UserError` for missing and damaged ones."""
        shards = find_shards(str(pattern))
        plain = re.sub(r"\{[^}]*\}|[*?\[\]]", "", pattern.name).removesuffix(".tar").strip("-_.")
        root = shards[0].parent / f"{plain or 'shards'}-data"
        items = list[Item]()
        for shard in shards:
            status = shard.stat()
            # Shards of several folders may have the same name, and all may be moved together.
            place = os.path.relpath(shard, root.parent)
            state = [place, status.st_size, status.st_mtime_ns]
            part = f"{shard.stem}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
            for item in unpacked(root, part, state, split_of(shard), partial(read_shard, shard)):
                name = name_of(f"{place}/{item.media.name}")  # shards may repeat keys
                items.append(item._replace(media=Media(name, item.media.files)))
        super().__init__(root, items, val_fraction)


def find_shards(pattern: str) -> list[Path]:
    """Return the shards of a pattern in order; raises :class:`UserError` if one is missing."""
    try:
        import braceexpand
    except ImportError:
        raise UserError(NOT_INSTALLED) from None
    if re.search(r"\d{7}\.\.|\.\.-?\d{7}", pattern):  # expanding it would take hours
        raise UserError(f"webdataset: {pattern}: expected ranges of numbers of up to 6 digits")
    shards: list[Path] = []
    try:
        for one in braceexpand.braceexpand(pattern):  # the first missing file ends it
            is_pattern = glob.has_magic(one) and not os.path.isfile(one)  # [ may be part of a name
            found = sorted(glob.glob(one)) if is_pattern else [one]
            if not found or not all(map(os.path.isfile, found)):
                raise UserError(
                    f"webdataset: {one}: expected tar files, such as DIR/train-{{000..009}}.tar or "
                    "'DIR/*.tar', got no such file"
                )
            shards += map(Path, found)
    except braceexpand.UnbalancedBracesError as error:  # type: ignore[attr-defined]
        raise UserError(f"webdataset: {pattern}: {error}") from None
    return list(dict.fromkeys(shards))


def split_of(shard: Path) -> str:
    """Return the split of a shard from its name or, failing that, its folder's name."""
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
    with shard.open("rb") as stream:
        source = [{"stream": stream, "url": str(shard)}]
        for sample in group_by_keys(tar_file_expander(source)):
            files = {ext: data for ext, data in sample.items() if not ext.startswith("__")}
            if video := _video(shard, sample["__key__"], files):
                yield video


def check_shard(shard: Path) -> None:
    """Raise :class:`UserError` unless a tar file is complete: two blocks of zeros, then only zeros.

    Python takes a damaged header for the end of the file.
    """
    try:
        with tarfile.open(shard, "r:*") as tar:
            if links := [member.name for member in tar if member.islnk() or member.issym()]:
                raise tarfile.TarError(f"{links[0]} is a link")
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
            f"webdataset: {shard}: expected a complete tar file, got: {reason}"
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
    chosen = videos or sorted(images, key=lambda ext: image_order(Path(ext)))
    name = name_of(f"{key}.{videos[0]}" if videos else key)
    try:
        label: object = files.get("cls", b"").decode()
        if "cls" not in files and isinstance(about := json.loads(files.get("json", b"0")), dict):
            label = about.get(find_column(about, "label"))
        labels = labels_in(label)
    except (ValueError, RecursionError) as error:
        raise UserError(f"webdataset: {shard}: the label of {key}: {error}") from None
    return Packed(name, [(suffixes[ext], files[ext]) for ext in chosen], labels)
