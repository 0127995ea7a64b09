"""H.264 whose frames are coded as two field pictures each, which no encoder of FFmpeg writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.support.painted import picture

MACROBLOCK = 16
COLUMNS, ROWS = 4, 4
"""Macroblocks of a frame; a field has half of the rows."""
REFERENCE, PCM = 3, 25


class _Writer:
    def __init__(self) -> None:
        self.bits = ""

    def put(self, value: int, count: int = 1) -> _Writer:
        self.bits += format(value, f"0{count}b")
        return self

    def golomb(self, *values: int) -> _Writer:
        for value in values:
            code = format(value + 1, "b")
            self.bits += "0" * (len(code) - 1) + code
        return self

    def align(self) -> _Writer:
        self.bits += "0" * (-len(self.bits) % 8)
        return self

    def unit(self, kind: int) -> bytes:
        """End with a stop bit; keep start codes out of the content."""
        self.put(1).align()
        content = int(self.bits, 2).to_bytes(len(self.bits) // 8, "big")
        out, zeros = bytearray([REFERENCE << 5 | kind]), 0
        for byte in content:
            if zeros == 2 and byte <= 3:
                out.append(3)
                zeros = 0
            out.append(byte)
            zeros = 0 if byte else zeros + 1
        return b"\0\0\0\1" + out


def _parameters() -> bytes:
    sequence = _Writer().put(100, 8).put(0, 8).put(30, 8)
    # Of the high profile: 4:2:0 in 8 bits with one matrix; counted in the order of showing.
    sequence.golomb(0, 1, 0, 0).put(0).put(1).put(1).golomb(*[0] * 16).put(0, 7)
    sequence.golomb(0, 0, 4, 1).put(0).golomb(COLUMNS - 1, ROWS // 2 - 1)
    sequence.put(0).put(0).put(1).put(0).put(0)  # fields are possible
    pictures = _Writer().golomb(0, 0).put(0, 2).golomb(0, 0, 0).put(0, 3).golomb(0, 0, 0).put(4, 3)
    return sequence.unit(7) + pictures.unit(8)


def _picture(luma: np.ndarray, number: int, parity: int | None) -> bytes:
    """Code a field, or a frame without a parity: a slice of each row of macroblocks."""
    is_first = number == 0 and not parity
    rows = luma if parity is None else luma[parity::2]
    out = b""
    for y in range(0, len(rows), MACROBLOCK):
        bits = _Writer().golomb(y // MACROBLOCK * COLUMNS, 7, 0).put(number % 16, 4)
        bits.put(0) if parity is None else bits.put(1).put(parity)
        if is_first:
            bits.golomb(0)
        bits.put((2 * number + (parity or 0)) % 256, 8)
        bits.put(0, 2 if is_first else 1).golomb(0, 1)
        for x in range(0, rows.shape[1], MACROBLOCK):
            bits.golomb(PCM).align()
            block = rows[y : y + MACROBLOCK, x : x + MACROBLOCK]
            for byte in [*block.flatten().tolist(), *[128] * (2 * block.size // 4)]:
                bits.put(byte, 8)
        out += bits.unit(5 if is_first else 1)
    return out


def packets(frames: int, in_fields: Callable[[int], bool]) -> Iterator[bytes]:
    """Code :func:`picture` of video 1; ``in_fields`` tells which frames are two fields."""
    for number in range(frames):
        luma = picture(1, number, ROWS * MACROBLOCK, COLUMNS * MACROBLOCK)[..., 0]
        for parity in (0, 1) if in_fields(number) else (None,):
            parameters = b"" if number or parity else _parameters()
            yield b"\0\0\0\1\x09\xf0" + parameters + _picture(luma, number, parity)


def write_fields(
    path: Path, frames: int, in_fields: Callable[[int], bool] = lambda _: True, left_out: int = -1
) -> Path:
    """Write a video of 25 frames a second, without the packet ``left_out``."""
    raw = path.with_suffix(".h264")
    coded = [*packets(frames, in_fields)]
    raw.write_bytes(b"".join(coded))
    with av.open(str(raw)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        read = [packet for packet in source.demux(video=0) if packet.size]
        assert len(read) == len(coded)
        for number, packet in enumerate(read):
            packet.time_base, packet.duration = Fraction(1, 50), 1
            packet.pts = packet.dts = number
            packet.stream = stream
            if number != left_out:
                target.mux(packet)
    return path
