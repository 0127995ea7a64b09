"""Checks that the frames which an MP4 or MOV file hides are hidden by its edit list, not by damage.

Source: ISO/IEC 14496-12. A track has tables of samples: their decoding times (``stts``), what is
added to these when they are shown (``ctts``), and their sizes (``stsz``). An edit list (``elst``)
shows a part of the track, as after trimming; FFmpeg discards samples outside it, or does not read
them where a key frame is nearer to the part. A damaged time moves a sample out of the part, without
an error. In an intact track samples are shown at the decoding times in another order, so a sample
that was moved leaves a hole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ivcl_fast.data.dataset import VideoError

MAX_TABLES = 2**28
"""Bytes; a longer ``moov`` is damaged."""
REORDERED = 16
"""Most samples by which decoding is ahead of showing."""


class Edit(NamedTuple):
    """A part of the track that is shown; the clock of ``start`` is the track's."""

    length: int
    """In the movie's clock."""
    start: int
    """-1: nothing is shown."""


def check_edits(path: Path) -> int:
    """Return how many frames of the first video track are shown.

    For files of which FFmpeg discards packets. Raises :class:`VideoError` if damage hides frames.
    Files in fragments pass, with 0: their tables are elsewhere.
    """
    try:
        moov = _moov(path)
        return 0 if b"mvex" in {kind for kind, _ in _boxes(moov)} else _check(moov)
    except (struct.error, StopIteration, LookupError, ValueError, OSError):
        raise VideoError("damaged: its tables of frames are not complete") from None


def _check(moov: bytes) -> int:
    traks = [content for kind, content in _boxes(moov) if kind == b"trak"]
    trak = next(t for t in traks if _inside(t, b"mdia", b"hdlr")[8:12] == b"vide")
    tables = dict(_boxes(_inside(trak, b"mdia", b"minf", b"stbl")))
    media_clock, media_length = _clock_and_length(_inside(trak, b"mdia", b"mdhd"))
    movie_clock, movie_length = _clock_and_length(_inside(moov, b"mvhd"))
    deltas = _runs(tables[b"stts"], ">u4")
    (samples,) = struct.unpack_from(">I", tables[b"stsz"], 8)
    offsets = np.zeros(samples, np.int64)
    if b"ctts" in tables:
        offsets = _runs(tables[b"ctts"], ">i4")
    if not samples or not len(deltas) == len(offsets) == samples:
        raise VideoError("damaged: its tables have different numbers of frames")
    decoded = np.concatenate([[0], np.cumsum(deltas)])
    times = decoded[:-1] + offsets
    shown, frame = np.sort(times), max(int(np.median(deltas)), 1)
    longest = int(deltas.max())
    if not _is_reordered(shown, decoded[:-1], deltas):
        raise VideoError("damaged: the times of its frames leave holes")
    lengths = int(decoded[-1]), int(shown[-1] - shown[0]) + frame  # writers declare either
    apart = [length - media_length for length in lengths]
    if min(map(abs, apart)) > 2 * longest or apart[1] > frame:
        raise VideoError("damaged: the times of its frames do not add up to its length")
    edits = _edits(_inside(trak, b"edts", b"elst"))
    tick = media_clock / movie_clock
    end, count = int(shown[-1]) + max(int(deltas[-1]), frame), 0
    for edit in edits:
        if edit.start < 0:
            continue
        edit_end = edit.start + edit.length * tick
        if edit.start < shown[0] - frame / 2 or edit_end > end + tick:
            raise VideoError("damaged: its edit list shows what it does not have")
        if len(edits) == 1 and end - edit_end > frame and movie_clock > media_clock:
            raise VideoError("damaged: the clock of the movie is finer than that of its frames")
        count += int(((shown >= edit.start) & (shown < round(edit_end))).sum())
    if sum(edit.length for edit in edits) > movie_length + 1:
        raise VideoError("damaged: its edit list is longer than the movie")
    tkhd = _inside(trak, b"tkhd")
    (track_length,) = struct.unpack_from(*((">Q", tkhd, 28) if tkhd[0] else (">I", tkhd, 20)))
    if abs(sum(edit.length for edit in edits) - track_length) > 1:
        raise VideoError("damaged: its edit list is not as long as its track")
    return count


def _is_reordered(shown: np.ndarray, decoded: np.ndarray, deltas: np.ndarray) -> bool:
    """Whether sorted times of showing are those of decoding, some samples later, and a constant.

    Rounding may change a time by one tick.
    """
    if (np.diff(shown) <= 0).any():
        return False
    constant, longest = len(np.unique(deltas[:-1])) <= 1, int(deltas.max())
    for ahead in range(1 if constant else min(REORDERED, len(shown) - 1) + 1):
        apart = shown[: len(shown) - ahead] - decoded[ahead:]
        if np.ptp(apart) <= 1:
            return bool(shown[-1] - decoded[-1] - apart[0] <= (ahead + 1) * longest)
    return False


def _moov(path: Path) -> bytes:
    with path.open("rb") as file:
        while head := file.read(16):
            size, kind, large = struct.unpack(">I4sQ", head)
            size = large if size == 1 else size
            if kind == b"moov":
                if size > MAX_TABLES:
                    raise ValueError
                return head[8:] + file.read(size - 16)
            file.seek(size - 16, 1)
    raise ValueError


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kinds and contents of the boxes inside a box."""
    at = 0
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, start)
            start += 8
        if size < start - at or at + size > len(content):
            raise ValueError
        yield kind, content[start : at + size]
        at += size


def _inside(content: bytes, *path: bytes) -> bytes:
    for wanted in path:
        content = next(found for kind, found in _boxes(content) if kind == wanted)
    return content


def _clock_and_length(header: bytes) -> tuple[int, int]:
    """Read ticks per second and length of ``mvhd`` or ``mdhd``."""
    clock, length = struct.unpack_from(*((">IQ", header, 20) if header[0] else (">II", header, 12)))
    if not clock:
        raise ValueError
    return clock, length


def _runs(table: bytes, kind: str) -> np.ndarray:
    """Expand a table of (number, value) to the values: int64 ``[samples]``."""
    (count,) = struct.unpack_from(">I", table, 4)
    numbers = np.frombuffer(table, ">u4", count * 2, 8)[::2].astype(np.int64)
    values = np.frombuffer(table, kind, count * 2, 8)[1::2].astype(np.int64)
    if numbers.sum() > MAX_TABLES:
        raise ValueError
    return np.repeat(values, numbers)


def _edits(table: bytes) -> list[Edit]:
    (count,) = struct.unpack_from(">I", table, 4)
    form = ">Qqhh" if table[0] else ">Iihh"
    size = struct.calcsize(form)
    return [Edit(*struct.unpack_from(form, table, 8 + n * size)[:2]) for n in range(count)]
