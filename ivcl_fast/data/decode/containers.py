"""Checks that a file is as long as the header of its container declares.

FFmpeg reads a truncated file without an error; but the end of a video is what labels are about.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ivcl_fast.data.dataset import VideoError

EBML_HEADER, EBML_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def check_length(path: Path) -> None:
    """Compare the length of a file with the header of AVI, WebM, Matroska, MP4 or MOV.

    Raises :class:`VideoError` for a file that is shorter, empty or unreadable. Other formats pass,
    and so does a header without a length, as live recorders write it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            declared = _declared_length(file, size)
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from None
    except ValueError:  # a zero byte in the name, from a damaged list
        raise VideoError("cannot be opened: its name is invalid") from None
    if size == 0:
        raise VideoError("the file is empty (0 bytes)")
    if declared is not None and declared > size:
        raise VideoError(f"truncated: {size:,} of {declared:,} bytes")


def _declared_length(file: BinaryIO, size: int) -> int | None:
    head = file.read(64)
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        if not length:
            raise VideoError("truncated: its writer did not finish")
        return 8 + length
    if head[:4] == EBML_HEADER:
        return _matroska_length(head)
    if head[4:8] == b"ftyp":
        return _mp4_length(file, size)
    return None


def _matroska_length(head: bytes) -> int | None:
    """Read the two EBML elements: a header, then the segment with all content."""
    length, at = _ebml_size(head, 4)
    at += length or 0
    if head[at : at + 4] != EBML_SEGMENT:
        return None
    length, at = _ebml_size(head, at + 4)
    return None if length is None else at + length


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """Read a size; return it and its end. It has one byte more than the first has leading zeros.

    All ones mean an unknown size, returned as None.
    """
    if at >= len(data) or not data[at]:
        return None, at
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def _mp4_length(file: BinaryIO, size: int) -> int:
    """Return the end of the last box; the file is a sequence of boxes."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the actual length follows the name
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # to the end of the file
            return size
        if length < 8:
            return size  # not a box: bytes after the end are harmless
        at += length
    return at
