"""Tells which packets of a video show no frame of their own, by the design of their codec.

* H.264 may code the two fields of an interlaced frame as pictures in packets of their own, of
  which the second completes a frame (ITU-T H.264, 7.3.3; AVCHD cameras do).
* VP8 has frames that are not shown, only referred to (RFC 6386, 9.1).
* MPEG-4 has VOPs that are "not coded", in which a frame stays (ISO/IEC 14496-2, 6.2.5).

A packet that cannot be read for certain shows a frame, so that FFmpeg, which makes none of it,
tells that it is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from av.packet import Packet

START = b"\0\0\1"
VOP, VOL = START + b"\xb6", re.compile(rb"\0\0\x01[\x20-\x2f]")
"""Start codes of MPEG-4: of a picture, and of the layer with what pictures have in common."""
NOT_CODED_BYTES = 19
"""Size of a VOP that is not coded, at most; FFmpeg's bound."""
HEADER_BYTES = 64
"""Bytes of a slice of H.264 that are read, which have more than its first numbers."""
HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
SLICES, SPS, PPS = (1, 5), 7, 8
"""Types of units of H.264; the last two are parameters of sequences and of pictures."""


def shows_frame(codec: str, extradata: bytes | None) -> Callable[[Packet], bool]:
    """Return a function that is called with every packet of a video in order, and returns whether
    the packet shows a frame of its own.

    ``extradata``: what the container says of the codec.
    """
    if codec == "vp8":  # key frames are always shown
        return lambda packet: memoryview(packet)[0] & 0x11 != 1
    if codec == "mpeg4":
        return _Vops(extradata or b"")
    if codec == "h264":
        return _Fields(extradata or b"")
    return lambda _: True


class _Bits:
    """Reads numbers from bits; raises ``ValueError`` at their end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


class _Vops:
    """Of MPEG-4.

    A packet may contain a second VOP, which FFmpeg shows in place of the next packet's ("packed").
    """

    def __init__(self, extradata: bytes) -> None:
        self._time_bits = 0
        self._learn(extradata)
        self._has_held = False

    def __call__(self, packet: Packet) -> bool:
        headers, *vops = bytes(packet).split(VOP)
        self._learn(headers)
        shows = self._has_held or not vops or self._is_coded(vops[0])
        self._has_held = len(vops) > 1
        return shows

    def _is_coded(self, vop: bytes) -> bool:
        if not self._time_bits or len(VOP) + len(vop) > NOT_CODED_BYTES:
            return True
        bits = _Bits(vop)
        try:
            bits.take(2)  # type
            while bits.take(1):  # seconds
                pass
            bits.take(2 + self._time_bits)  # time, between two markers
            return bool(bits.take(1))
        except ValueError:
            return True

    def _learn(self, headers: bytes) -> None:
        """Read how many bits a time has, where headers have the layer that says so."""
        if (layer := VOL.search(headers)) is None:
            return
        bits = _Bits(headers[layer.end() :])
        try:
            bits.take(9)  # random access, type
            version = bits.take(7) >> 3 if bits.take(1) else 1
            if bits.take(4) == 15:  # shape of the pixels
                bits.take(16)
            if bits.take(1) and bits.take(4) & 1:  # control parameters, with those of a buffer
                bits.take(79)
            if bits.take(2) == 3 and version != 1:  # shape of the layer
                bits.take(4)
            bits.take(1)
            self._time_bits = max(1, (bits.take(16) - 1).bit_length())
        except ValueError:
            return


class _Fields:
    """Of H.264."""

    def __init__(self, extradata: bytes) -> None:
        self._sequences: dict[int, tuple[int, int, bool]] = {}
        """By number: bits of a colour plane and of a frame's number; whether fields may occur."""
        self._pictures: dict[int, int] = {}
        """By the number of parameters of pictures: that of their sequence."""
        self._length_bytes = 0
        """Bytes of the length before each unit; 0 if start codes stand between them."""
        self._expected: tuple[int, int] | None = None
        """Number of a frame whose second field may follow, and parity of that field."""
        if extradata[:1] != b"\1":
            for unit in self._units(extradata):
                self._learn(unit)
            return
        self._length_bytes = (int.from_bytes(extradata[4:5]) & 3) + 1
        at = 5
        for _ in (SPS, PPS):
            count, at = int.from_bytes(extradata[at : at + 1]) & 31, at + 1
            for _ in range(count):
                size, at = int.from_bytes(extradata[at : at + 2]), at + 2
                self._learn(extradata[at : at + size])
                at += size

    def __call__(self, packet: Packet) -> bool:
        if not any(has_fields for *_, has_fields in self._sequences.values()):
            return True
        pictures: list[bool] = []
        for unit in self._units(bytes(packet)):
            self._learn(unit)
            if unit and unit[0] & 31 in SLICES:
                try:
                    pictures += self._begun(_Bits(_unescaped(unit[1:HEADER_BYTES])))
                except (ValueError, KeyError):
                    return True
        return any(pictures) or not pictures

    def _begun(self, bits: _Bits) -> list[bool]:
        """Return whether the picture that a slice begins shows a frame; of other slices nothing."""
        if bits.golomb():  # its first macroblock
            return []
        bits.golomb()  # type
        colour_bits, number_bits, may_have_fields = self._sequences[self._pictures[bits.golomb()]]
        bits.take(colour_bits)
        number = bits.take(number_bits)
        if not may_have_fields or not bits.take(1):
            self._expected = None
            return [True]
        parity = bits.take(1)
        is_second = (number, parity) == self._expected
        self._expected = None if is_second else (number, 1 - parity)
        return [not is_second]

    def _units(self, data: bytes) -> Iterator[bytes]:
        if not self._length_bytes:
            yield from data.split(START)[1:]
        at = 0 if self._length_bytes else len(data)
        while at < len(data):
            start = at + self._length_bytes
            at = start + int.from_bytes(data[at:start])
            yield data[start:at]

    def _learn(self, unit: bytes) -> None:
        """Read parameters, if that is what the unit has."""
        kind = unit[0] & 31 if unit else 0
        bits = _Bits(_unescaped(unit[1:]) if kind in (SPS, PPS) else b"")
        try:
            if kind == PPS:
                number = bits.golomb()
                self._pictures[number] = bits.golomb()
            elif kind == SPS:
                number, found = _sequence(bits)
                self._sequences[number] = found
        except ValueError:
            return


def _sequence(bits: _Bits) -> tuple[int, tuple[int, int, bool]]:
    """Read the number of a sequence and what slices need to know of it."""
    profile = bits.take(24) >> 16
    number, colour_bits = bits.golomb(), 0
    if profile in HIGH_PROFILES:
        if (colours := bits.golomb()) == 3:
            colour_bits = 2 * bits.take(1)
        bits.golomb(), bits.golomb(), bits.take(1)  # depths, and whether nothing is transformed
        if bits.take(1):
            for matrix in range(12 if colours == 3 else 8):
                if bits.take(1):
                    _skip_matrix(bits, 16 if matrix < 6 else 64)
    number_bits = 4 + bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1), bits.golomb(), bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb(), bits.take(1), bits.golomb(), bits.golomb()  # references, gaps, size
    return number, (colour_bits, number_bits, not bits.take(1))


def _skip_matrix(bits: _Bits, size: int) -> None:
    last = 8
    for _ in range(size):
        code = bits.golomb()
        last = (last + (code + 1 >> 1) * (1 if code & 1 else -1)) % 256
        if not last:  # the rest is as before
            return


def _unescaped(unit: bytes) -> bytes:
    """Leave out the bytes that keep start codes out of a unit."""
    return unit.replace(b"\0\0\3", b"\0\0")
