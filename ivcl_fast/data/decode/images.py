"""Encoded PNG and JPEG images: codec, size, orientation, completeness, missing Huffman tables.

Motion-JPEG may omit the standard Huffman tables, as Blender does, which rendered CATER. FFmpeg and
libjpeg-turbo add them; other decoders reject the image.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivcl_fast.data.crop import UPRIGHT, Orientation
from ivcl_fast.data.dataset import VideoError

if TYPE_CHECKING:
    from PIL import Image  # imported late: training from a store needs no Pillow

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Writers of Motion-JPEG pad a packet to a multiple of 2 (FFmpeg) or 4 (Blender) bytes.
MAX_PADDING = 3
DEFINE_HUFFMAN_TABLES, START_OF_SCAN = 0xC4, 0xDA
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
    """Whether a file is an image, by its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def image_codec(image: bytes) -> str:
    """Return FFmpeg's name of the codec; raises :class:`VideoError` unless it is PNG or JPEG."""
    if image.startswith(PNG_START):
        return "png"
    if image.startswith(JPEG_START):
        return "mjpeg"
    raise VideoError("expected a PNG or JPEG image")


def check_image(image: bytes, name: str) -> None:
    """Raise :class:`VideoError` unless the image is complete from its first to its last marker."""
    complete = (image.startswith(PNG_START) and image.endswith(PNG_END)) or (
        image.startswith(JPEG_START) and JPEG_END in image[-len(JPEG_END) - MAX_PADDING :]
    )
    if not complete:
        raise VideoError(f"{name} is not a complete JPEG or PNG image")


def image_size(image: bytes) -> tuple[int, int]:
    """Read width and height from the header."""
    return _header(image).size


def exif_orientation(image: bytes, otherwise: Orientation = UPRIGHT) -> Orientation:
    """Read the orientation from the EXIF data; return ``otherwise`` if that is impossible.

    FFmpeg reads it too, but PyAV does not report whether it mirrors the image.
    """
    from PIL import ExifTags, Image

    exif = Image.Exif()
    try:
        exif.load(_header(image).info.get("exif", b""))
        value = exif.get(ExifTags.Base.Orientation)
    except (VideoError, OSError, SyntaxError, ValueError, struct.error):
        value = None
    return EXIF_ORIENTATIONS.get(value or 0, otherwise)


def _header(image: bytes) -> Image.Image:
    """Read the header with Pillow, without decoding the pixels."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(image), formats=("JPEG", "PNG"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"has a damaged header: {type(error).__name__}") from None


def frame_orientation(frame: Any) -> Orientation:
    """Return the orientation of a video frame from its display matrix."""
    turns = round(frame.rotation / 90)
    try:
        data: Any = frame.side_data
        a, b, _, c, d = struct.unpack_from("=5i", data["DISPLAYMATRIX"])
    except (KeyError, ValueError):  # no matrix, or side data that PyAV does not know
        return Orientation(turns % 4)
    mirrored = a * d < b * c
    # FFmpeg's angle refers to the stored rows, which mirroring reverses.
    return Orientation((turns + 2 * mirrored) % 4, mirrored)


def with_huffman_tables(jpeg: bytes) -> bytes:
    """Insert the standard Huffman tables into a JPEG image that has none.

    Other images are returned unchanged.
    """
    at = len(JPEG_START)
    while jpeg.startswith(JPEG_START) and at + 4 <= len(jpeg):  # segments up to the scan
        if jpeg[at + 1] == DEFINE_HUFFMAN_TABLES:
            return jpeg
        if jpeg[at + 1] == START_OF_SCAN:
            return jpeg[:at] + STANDARD_HUFFMAN_TABLES + jpeg[at:]
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg
