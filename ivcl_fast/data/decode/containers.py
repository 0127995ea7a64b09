"""Checks that a file is a container of a kind that is meant, and is as long as it declares.

FFmpeg reads a truncated file without an error, and it skips damaged parts of WebM and Matroska; but
the end of a video is what labels are about. FFmpeg also reads lists of other files (ffconcat,
``.m3u8``), which would open files that nobody named; :data:`FORMATS` has none of them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.matroska import check_matroska

FORMATS = "avi,matroska,webm,mov,mp4,mpeg,mpegts,flv,ogg,gif,ivf,m4v,mjpeg,asf,h264,hevc,obu"
"""FFmpeg's names of the containers that are read; each file holds all that it shows."""

EBML_HEADER = b"\x1a\x45\xdf\xa3"
GIF_EXTENSION, GIF_IMAGE = b"\x21", b"\x2c"
"""First bytes of blocks."""


def check_length(path: Path) -> int:
    """Check that a file of AVI, WebM, Matroska, MP4, MOV or GIF is as long as it declares.

    Returns the least number of packets of the first video track, where the whole container was
    read, as of WebM and Matroska; else 0.

    Raises :class:`VideoError` for a file that is shorter, empty or unreadable, and for damage
    inside WebM or Matroska. Other formats pass, and so does a header without a length, as live
    recorders write it.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
            raise VideoError("is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head, declared = file.read(8), 0
            if head[:4] == b"RIFF":
                declared = 8 + int.from_bytes(head[4:], "little")
            elif head[4:] == b"ftyp":
                declared = _mp4_length(file, size)
            elif head[:6] in (b"GIF87a", b"GIF89a"):
                declared = _gif_length(file)
    except OSError as error:
        raise VideoError(f"cannot be opened: {error.strerror}") from None
    except ValueError:  # a zero byte in the name, from a damaged list
        raise VideoError("cannot be opened: its name is invalid") from None
    if size == 0:
        raise VideoError("the file is empty (0 bytes)")
    if head[:4] == b"RIFF" and declared == 8:
        raise VideoError("truncated: its writer did not finish")
    if declared > size:
        raise VideoError(f"truncated: {size:,} of {declared:,} bytes")
    return check_matroska(path) if head[:4] == EBML_HEADER else 0


def _mp4_length(file: BinaryIO, size: int) -> int:
    """Return the end of the last box; the file is a sequence of boxes."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the actual length follows the name
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end; else no box, but bytes after the end, which are harmless
            return size
        at += length
    return at


def _gif_length(file: BinaryIO) -> int:
    """Return the end of a GIF file, or a place behind the end of the file if it has none."""
    file.seek(10)
    at = 13 + _palette_bytes(file.read(1))
    while True:
        file.seek(at)
        head = file.read(10)
        if head[:1] == GIF_EXTENSION:
            at += 2
        elif head[:1] == GIF_IMAGE:  # the first byte after the palette is about compression
            at += 11 + _palette_bytes(head[9:])
        else:  # the end, or no block, as FFmpeg says when it decodes; or the file ends before
            return at + 1
        while True:  # parts, up to an empty one
            file.seek(at)
            length = int.from_bytes(file.read(1))
            at += 1 + length
            if not length:
                break


def _palette_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def empty_chunks(path: Path, stream: int) -> int:
    """Count the empty chunks of a stream of an AVI file; in each of them a frame stays."""
    count, name = 0, b"%02d" % stream
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            count += not size and head[:2] == name
            # Lists contain chunks; those of an odd size are padded.
            file.seek(4 if head[:4] in (b"RIFF", b"LIST") else size + size % 2, os.SEEK_CUR)
    return count
