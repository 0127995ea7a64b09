"""Encoded PNG and JPEG images: codec, size, orientation, completeness, missing Huffman tables.

Motion-JPEG may omit the Huffman tables, which are then the standard ones; Blender, which rendered
CATER, does so. FFmpeg and libjpeg-turbo fill them in themselves, other decoders refuse the image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivcl_fast.data.crop import UPRIGHT, Orientation
from ivcl_fast.data.dataset import VideoError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Writers of Motion-JPEG pad a packet to a multiple of 2 (FFmpeg) or 4 (Blender) bytes.
MAX_PADDING = 3
# Frame headers; 0xC4, 0xC8 and 0xCC in this range are tables.
JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
DEFINE_HUFFMAN_TABLES, START_OF_SCAN, APP1 = 0xC4, 0xDA, 0xE1
EXIF_START = b"Exif\0\0"
ORIENTATION_TAG = 0x0112
EXIF_ORIENTATIONS = {
    1: UPRIGHT, 2: Orientation(0, True), 3: Orientation(2), 4: Orientation(2, True),
    5: Orientation(1, True), 6: Orientation(3), 7: Orientation(3, True), 8: Orientation(1),
}  # fmt: skip

# Marker and length, then the tables of ITU-T T.81, Annex K.3: class and id, number of codes of 1 to
# 16 bits, values.
STANDARD_HUFFMAN_TABLES = bytes.fromhex("""
    ffc4 01a2
    00 00010501010101010100000000000000 000102030405060708090a0b
    01 00030101010101010101010000000000 000102030405060708090a0b
    10 0002010303020403050504040000017d 01020300041105122131410613516107227114328191a1082342b1c115
    52d1f02433627282090a161718191a25262728292a3435363738393a434445464748494a535455565758595a636465
    666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9
    bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa
    11 00020102040403040705040400010277 000102031104052131061241510761711322328108144291a1b1c10923
    3352f0156272d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a6364
    65666768696a737475767778797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7
    b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa
""")


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def image_codec(image: bytes) -> str:
    """Return FFmpeg's name of the codec; raises :class:`VideoError` unless it is PNG or JPEG."""
    if image.startswith(PNG_START):
        return "png"
    if image.startswith(JPEG_START):
        return "mjpeg"
    raise VideoError("is neither a PNG nor a JPEG image")


def check_image(image: bytes, name: str) -> None:
    """Raise :class:`VideoError` unless the image is complete from its first to its last marker."""
    complete = (image.startswith(PNG_START) and image.endswith(PNG_END)) or (
        image.startswith(JPEG_START) and JPEG_END in image[-len(JPEG_END) - MAX_PADDING :]
    )
    if not complete:
        raise VideoError(f"{name} is not a complete JPEG or PNG image")


def image_size(image: bytes) -> tuple[int, int]:
    """Read width and height from the header."""
    if image.startswith(PNG_START):
        return int.from_bytes(image[16:20], "big"), int.from_bytes(image[20:24], "big")
    for marker, at, _ in _segments(image):
        if marker in JPEG_FRAME_MARKERS and at + 9 <= len(image):
            height, width = image[at + 5 : at + 7], image[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
    raise VideoError("a JPEG image without a frame header")


def exif_orientation(image: bytes, otherwise: Orientation = UPRIGHT) -> Orientation:
    """Read the orientation from the EXIF data; ``otherwise`` if there are none, or damaged ones.

    FFmpeg reads it too, but PyAV cannot tell whether it mirrors the image.
    """
    exif = _exif(image)
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[exif[:4]]
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(entries):
            at = start + 2 + 12 * entry
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if tag == ORIENTATION_TAG:
                return EXIF_ORIENTATIONS[value]
    except (KeyError, struct.error):
        pass
    return otherwise


def frame_orientation(frame: Any) -> Orientation:
    """Return what makes a frame of a video upright, by the display matrix that FFmpeg gives it."""
    turns = round(frame.rotation / 90)
    try:
        data: Any = frame.side_data
        a, b, _, c, d = struct.unpack_from("=5i", data["DISPLAYMATRIX"])
    except (KeyError, ValueError):  # it has none, or data of a kind that PyAV does not know
        return Orientation(turns % 4)
    mirrored = a * d < b * c
    # FFmpeg's angle is that of the stored rows, which mirroring reverses.
    return Orientation((turns + 2 * mirrored) % 4, mirrored)


def _exif(image: bytes) -> bytes:
    """Return the EXIF data, which are a TIFF file; empty if there are none."""
    if image.startswith(PNG_START):
        at = len(PNG_START)
        while at + 8 <= len(image):
            size, kind = struct.unpack_from(">I4s", image, at)
            if kind == b"eXIf":
                return image[at + 8 : at + 8 + size]
            at += 12 + size
        return b""
    for marker, at, end in _segments(image):
        if marker == START_OF_SCAN:
            break
        if marker == APP1 and image.startswith(EXIF_START, at + 4):
            return image[at + 4 + len(EXIF_START) : end]
    return b""


def with_huffman_tables(jpeg: bytes) -> bytes:
    """Insert the standard Huffman tables into a JPEG image that has none.

    Other images are returned unchanged.
    """
    if not jpeg.startswith(JPEG_START):
        return jpeg
    for marker, at, _ in _segments(jpeg):
        if marker == DEFINE_HUFFMAN_TABLES:
            return jpeg
        if marker == START_OF_SCAN:
            return jpeg[:at] + STANDARD_HUFFMAN_TABLES + jpeg[at:]
    return jpeg


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the segments of a JPEG image; none after a scan is one."""
    at = len(JPEG_START)
    while at + 4 <= len(jpeg):
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield jpeg[at + 1], at, end
        at = end
