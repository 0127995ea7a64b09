"""``movi:DIR``: MOVi, videos with masks, as TensorFlow Datasets writes them.

Source: github.com/google-research/kubric, ``challenges/movi``. DIR is a folder such as
``movi_a/128x128/1.0.0`` with files ``movi_a-train.tfrecord-00000-of-00512``. A record is a
``tf.train.Example`` of one video, whose ``video`` and ``segmentations`` are PNG files, one per
frame; segmentations are numbers of objects, and 0 is the background. TensorFlow is not needed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from ivcl_fast.data.formats.custom.labelled import TASK, VAL_FRACTION
from ivcl_fast.data.formats.davis import Davis
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_folder, locked

log = logging.getLogger(__name__)

_FILE = re.compile(r".+-(?P<split>\w+)\.tfrecord-\d+-of-\d+")
_FOLDERS = {b"video": "JPEGImages", b"segmentations": "Annotations"}
_EXPECTED = "a record of MOVi with video and segmentations"


class Movi(Davis):
    """The videos and masks of MOVi, without classes, unpacked once in the layout of DAVIS.

    The unpacked files and the frame store are in ``DIR-data``.
    """

    def __init__(self, root: Path, task: str = TASK, val_fraction: float = VAL_FRACTION) -> None:
        """List the videos; raises :class:`UserError` if there are none or a file is damaged."""
        super().__init__(unpacked(Path(root).absolute()), task, val_fraction)


def unpacked(root: Path) -> Path:
    """Return the folder with the unpacked videos; the first call writes it."""
    out = root.with_name(f"{root.name}-data")
    found = [match for path in sorted(root.glob("*")) if (match := _FILE.fullmatch(path.name))]
    if not found:
        raise UserError(f"movi:{root}: expected files *-train.tfrecord-00000-of-..., got none")
    with locked(root, busy="unpacked"):  # one rank unpacks, the others wait
        if not out.is_dir():
            log.info("unpacking videos into %s", out)
            with atomic_folder(out) as partial:
                lists = partial / "ImageSets" / "movi"
                lists.mkdir(parents=True)
                for file in found:
                    for number, record in enumerate(read_records(root / file[0])):
                        name = f"{file[0]}-{number:03d}"
                        write_video(record, partial, name)
                        with (lists / f"{file['split']}.txt").open("a") as listed:
                            print(name, file=listed)
    return out


def write_video(record: memoryview, out: Path, name: str) -> None:
    """Write the frames and masks of a record."""
    images = {key: files for key, files in read_example(record) if key in _FOLDERS}
    if len(images) < len(_FOLDERS) or len({len(files) for files in images.values()}) > 1:
        raise UserError(f"{name}: expected {_EXPECTED}, got another")
    for key, files in images.items():
        folder = out / _FOLDERS[key] / name
        folder.mkdir(parents=True)
        for number, image in enumerate(files):
            (folder / f"{number:05d}.png").write_bytes(image)


# --- TFRecord files and protocol buffers ----------------------------------------------------------


def read_records(path: Path) -> Iterator[memoryview]:
    """Yield the records of a TFRecord file, without checking their checksums."""
    content = memoryview(path.read_bytes())
    while content:
        end = 12 + int.from_bytes(content[:8], "little")  # after the length and its checksum
        if len(content) < end + 4:
            raise UserError(f"{path}: ends within a record")
        yield content[12:end]
        content = content[end + 4 :]


def read_example(record: memoryview) -> Iterator[tuple[bytes, list[memoryview]]]:
    """Yield the name and values of each feature of a ``tf.train.Example`` that holds bytes."""
    try:
        for features in parts(record, 1):
            for feature in parts(features, 1):
                (name,), (value,) = parts(feature, 1), parts(feature, 2)
                for values in parts(value, 1):  # 2 and 3 are numbers
                    yield bytes(name), parts(values, 1)
    except (IndexError, ValueError):
        raise UserError(f"movi: expected {_EXPECTED}, got another") from None


def parts(message: memoryview, field: int) -> list[memoryview]:
    """Return the contents of a field of a message whose fields are all bytes or messages."""
    found, at = list[memoryview](), 0
    while at < len(message):
        key, at = read_varint(message, at)
        length, at = read_varint(message, at)
        if key & 7 != 2 or at + length > len(message):  # 2: preceded by its length
            raise ValueError
        if key >> 3 == field:
            found.append(message[at : at + length])
        at += length
    return found


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the whole number at a place, in groups of seven bits, and the place after it."""
    number = shift = 0
    while message[at] & 0x80:
        number |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | message[at] << shift, at + 1
