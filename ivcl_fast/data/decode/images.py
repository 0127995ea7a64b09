"""Image files, and frames of videos that are images: which kind, how large, whether complete."""

from __future__ import annotations

from pathlib import Path

from ivcl_fast.data.dataset import VideoError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Writers of Motion-JPEG pad a packet to a multiple of 2 (FFmpeg) or 4 (Blender) bytes.
MAX_PADDING = 3
# Frame headers; 0xC4, 0xC8 and 0xCC among them stand for tables.
JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def is_image(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def kind_of(image: bytes) -> str:
    """FFmpeg's name of the image's codec; raises :class:`VideoError` unless it is PNG or JPEG."""
    if image.startswith(PNG_START):
        return "png"
    if image.startswith(JPEG_START):
        return "mjpeg"
    raise VideoError("is neither a PNG nor a JPEG image")


def check_image(image: bytes, name: str) -> None:
    """Raises :class:`VideoError` unless the image begins and ends as it must."""
    complete = (image.startswith(PNG_START) and image.endswith(PNG_END)) or (
        image.startswith(JPEG_START) and JPEG_END in image[-len(JPEG_END) - MAX_PADDING :]
    )
    if not complete:
        raise VideoError(f"{name} is not a complete JPEG or PNG image")


def image_size(image: bytes) -> tuple[int, int]:
    """Width and height, from the header."""
    if image.startswith(PNG_START):
        return int.from_bytes(image[16:20], "big"), int.from_bytes(image[20:24], "big")
    at = len(JPEG_START)
    while at + 9 <= len(image):
        if image[at + 1] in JPEG_FRAME_MARKERS:
            height, width = image[at + 5 : at + 7], image[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    raise VideoError("a JPEG image without a frame header")
