"""Checks that a WebM or Matroska file is whole inside, which FFmpeg does not.

Source: RFC 8794 (EBML) and RFC 9559 (Matroska). A file is a tree of elements: an id, a size, and
the content. FFmpeg looks for the next id that it knows where it meets none, so damaged clusters
vanish without an error. Here every byte of the segment has to belong to an element that may stand
there.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ivcl_fast.data.dataset import VideoError

SEGMENT, CLUSTER, INFO, TRACKS = 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B
VOID, CRC = 0xEC, 0xBF
IN_SEGMENT = {
    CLUSTER, INFO, TRACKS, VOID, CRC,
    0x114D9B74, 0x1C53BB6B, 0x1043A770, 0x1941A469, 0x1254C367,
}  # fmt: skip
"""Also: the table of contents, cues, chapters, attachments and tags."""
TIMESTAMP, SIMPLE_BLOCK, BLOCK_GROUP, BLOCK = 0xE7, 0xA3, 0xA0, 0xA1
IN_CLUSTER = {TIMESTAMP, SIMPLE_BLOCK, BLOCK_GROUP, VOID, CRC, 0x5854, 0xA7, 0xAB, 0xAF}
"""Also: silent tracks, position, size of the cluster before, and encrypted blocks."""
SCALE, DURATION = 0x2AD7B1, 0x4489
TRACK_ENTRY, TRACK_NUMBER, TRACK_TYPE = 0xAE, 0xD7, 0x83
VIDEO = 1
"""Type of a track."""
MISSING_SECONDS = 0.5
"""Time by which a file may declare to be longer than its frames, besides twice its longest gap."""


class Element(NamedTuple):
    """An element; its content is from ``start`` to ``end``."""

    id: int
    start: int
    end: int
    unknown_size: bool


def check_matroska(path: Path) -> int:
    """Raise :class:`VideoError`, with the place, if a part of a file is damaged or missing.

    Returns the number of blocks of the first video track; each has a frame, or several.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _check(data)
        except (IndexError, KeyError, struct.error):
            raise VideoError("damaged: an element ends behind its parent") from None


def _check(data: mmap.mmap) -> int:
    header = _element(data, 0, len(data))
    segment = _element(data, header.end, 2**63)
    if segment.id != SEGMENT:
        raise VideoError(f"damaged at byte {header.end:,}: no segment")
    end = len(data) if segment.unknown_size else segment.end
    if end > len(data):
        raise VideoError(f"truncated: {len(data):,} of {end:,} bytes")
    scale, duration = 1_000_000, 0.0
    tracks: dict[int, int] = {}
    times: list[int] = []
    blocks: Counter[int] = Counter()
    at = segment.start
    while at < end:
        part = _element(data, at, end)
        if part.id not in IN_SEGMENT:
            raise VideoError(f"damaged at byte {at:,}: no element of the format")
        at = part.end
        if part.id == INFO:
            for entry in _children(data, part):
                if entry.id == SCALE:
                    scale = int.from_bytes(data[entry.start : entry.end], "big")
                elif entry.id == DURATION:
                    kind = ">f" if entry.end - entry.start == 4 else ">d"
                    (duration,) = struct.unpack(kind, data[entry.start : entry.end])
        elif part.id == TRACKS:
            for track in _children(data, part):
                if track.id == TRACK_ENTRY:
                    entries = {entry.id: entry for entry in _children(data, track)}
                    number, track_type = (
                        int.from_bytes(data[entries[id].start : entries[id].end], "big")
                        for id in (TRACK_NUMBER, TRACK_TYPE)
                    )
                    tracks[number] = track_type
        elif part.id == CLUSTER:
            at = _check_cluster(data, part, tracks, times, blocks)
    if len(times) > 1 and duration > 0:
        times.sort()
        gap = max(b - a for a, b in pairwise(times))
        seconds = scale / 1e9
        if (times[-1] + 2 * gap) * seconds + MISSING_SECONDS < duration * seconds:
            raise VideoError(
                f"truncated: its frames end at {times[-1] * seconds:.1f} of "
                f"{duration * seconds:.1f} seconds"
            )
    return blocks[next((number for number, found in tracks.items() if found == VIDEO), -1)]


def _check_cluster(
    data: mmap.mmap,
    cluster: Element,
    tracks: Mapping[int, int],
    times: list[int],
    counts: Counter[int],
) -> int:
    """Check the blocks of a cluster, collect their times and count them; return its end."""
    start, at = 0, cluster.start
    while at < cluster.end:
        part = _element(data, at, cluster.end)
        if part.id not in IN_CLUSTER:
            if cluster.unknown_size and part.id in IN_SEGMENT:  # the next one begins
                return at
            raise VideoError(f"damaged at byte {at:,}: no element of the format")
        at = part.end
        if part.id == TIMESTAMP:
            start = int.from_bytes(data[part.start : part.end], "big")
            continue
        blocks = [part] if part.id == SIMPLE_BLOCK else []
        if part.id == BLOCK_GROUP:
            blocks = [child for child in _children(data, part) if child.id == BLOCK]
            if len(blocks) != 1:
                raise VideoError(f"damaged at byte {part.start:,}: a group without a block")
        for block in blocks:
            width = 9 - data[block.start].bit_length()
            number = int.from_bytes(data[block.start : block.start + width], "big")
            number &= (1 << 7 * width) - 1
            counts[number] += 1
            if tracks and number not in tracks:
                raise VideoError(f"damaged at byte {block.start:,}: a block of no track")
            (offset,) = struct.unpack_from(">h", data, block.start + width)
            times.append(start + offset)
    return cluster.end


def _children(data: mmap.mmap, parent: Element) -> list[Element]:
    found, at = [], parent.start
    while at < parent.end:
        found.append(_element(data, at, parent.end))
        at = found[-1].end
    return found


def _element(data: mmap.mmap, at: int, end: int) -> Element:
    """Read the head of the element at byte ``at`` of a parent that ends at ``end``."""
    id_width = 9 - data[at].bit_length()
    size_at = at + id_width
    if id_width > 4 or not data[size_at]:
        raise VideoError(f"damaged at byte {at:,}: no element begins there")
    size_width = 9 - data[size_at].bit_length()
    start = size_at + size_width
    all_ones = (1 << 7 * size_width) - 1
    size = int.from_bytes(data[size_at:start], "big") & all_ones
    unknown = size == all_ones
    if not unknown and start + size > end:
        raise VideoError(f"damaged at byte {at:,}: an element is longer than the file")
    id = int.from_bytes(data[at:size_at], "big")
    return Element(id, start, end if unknown else start + size, unknown)
