"""How long a file must be to be whole, by what its container says at its start.

FFmpeg reads what is there and keeps silent about a missing end; the end is what matters here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ivcl_fast.data.dataset import VideoError

EBML_HEADER, EBML_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def check_length(path: Path) -> None:
    """Compare a file's length with what an AVI, WebM/Matroska or MP4/MOV header declares.

    Raises :class:`VideoError` for a file that is shorter, empty or unreadable. Other formats, and
    a length left open by a live recorder, pass.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            declared = _declared_length(file, size)
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from None
    except ValueError:  # a zero byte in the name, from a damaged list
        raise VideoError("cannot be opened: its name is none") from None
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
    """Two EBML elements: a header, then the segment that holds everything."""
    length, at = _ebml_size(head, 4)
    at += length or 0
    if head[at : at + 4] != EBML_SEGMENT:
        return None
    length, at = _ebml_size(head, at + 4)
    return None if length is None else at + length


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A size and where it ends: as many bytes as the first has leading zeros, and one more.

    All ones stand for an unknown size (None).
    """
    if at >= len(data) or not data[at]:
        return None, at
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def _mp4_length(file: BinaryIO, size: int) -> int:
    """The end of the last of the boxes that the file is a sequence of."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the true length follows the name
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # to the end of the file
            return size
        if length < 8:
            return size  # no box: bytes behind the end are harmless
        at += length
    return at
