"""Encoded PNG and JPEG images: codec, size, completeness, and missing Huffman tables.

Motion-JPEG may omit the Huffman tables, which are then the standard ones; Blender, which rendered
CATER, does so. FFmpeg and libjpeg-turbo fill them in themselves, other decoders refuse the image.
"""

from __future__ import annotations

from pathlib import Path

from ivcl_fast.data.dataset import VideoError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Writers of Motion-JPEG pad a packet to a multiple of 2 (FFmpeg) or 4 (Blender) bytes.
MAX_PADDING = 3
# Frame headers; 0xC4, 0xC8 and 0xCC in this range are tables.
JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
DEFINE_HUFFMAN_TABLES, START_OF_SCAN = 0xC4, 0xDA

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
    at = len(JPEG_START)
    while at + 9 <= len(image):
        if image[at + 1] in JPEG_FRAME_MARKERS:
            height, width = image[at + 5 : at + 7], image[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    raise VideoError("a JPEG image without a frame header")


def with_huffman_tables(jpeg: bytes) -> bytes:
    """Insert the standard Huffman tables into a JPEG image that has none.

    Other images are returned unchanged.
    """
    if not jpeg.startswith(JPEG_START):
        return jpeg
    position = len(JPEG_START)
    while position + 4 <= len(jpeg):
        marker = jpeg[position + 1]
        if marker == DEFINE_HUFFMAN_TABLES:
            return jpeg
        if marker == START_OF_SCAN:
            return jpeg[:position] + STANDARD_HUFFMAN_TABLES + jpeg[position:]
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return jpeg
