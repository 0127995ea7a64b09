"""Media whose pixels encode the numbers of video and frame, in the formats of FFmpeg and Blender.

A frame shows a 4 x 4 grid of black and white blocks: 6 bits video number, 10 bits frame number.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import open_media
from ivcl_fast.models.reference import unpatchify

FRAME_BITS = 10


def media(path: Path) -> Media:
    """Return a video file as media with the name of the file."""
    return Media(path.stem, (path,))


def read_images(media: Media, frame_ids: Sequence[int] | np.ndarray | None = None) -> list[bytes]:
    """Read encoded frames of Motion-JPEG or of image files."""
    found = dict(open_media(media).images(frame_ids))
    return [found[int(i)] for i in (found if frame_ids is None else frame_ids)]


def picture(video: int, frame: int, height: int = 60, width: int = 80) -> np.ndarray:
    """Paint the numbers of a video and a frame: uint8 ``[H, W, 3]``."""
    bits = (video << FRAME_BITS | frame) >> np.arange(15, -1, -1) & 1
    blocks = bits.reshape(4, 4).repeat(height // 4, 0).repeat(width // 4, 1)
    return np.repeat(blocks[..., None] * 215 + 20, 3, -1).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[tuple[int, int]]:
    """Read (video, frame) of every frame of uint8 ``[F, 3, S, S]``."""
    count, _, size, _ = frames.shape
    blocks = frames.reshape(count, 3, 4, size // 4, 4, size // 4).mean((1, 3, 5))
    values = ((blocks.reshape(count, 16) > 128) @ (1 << np.arange(15, -1, -1))).tolist()
    return [(value >> FRAME_BITS, value & (1 << FRAME_BITS) - 1) for value in values]


def numbers_of_rows(rows: np.ndarray | torch.Tensor) -> list[tuple[int, int]]:
    """As :func:`numbers`, for patch rows uint8 ``[F, N, 3 * 8 * 8]``."""
    return numbers(unpatchify(torch.as_tensor(rows), 8).numpy())


def write_avi(path: Path, pictures: Sequence[np.ndarray]) -> Path:
    """Write a video as FFmpeg does: 4:2:0, with Huffman tables in every frame."""
    return write_video(path, pictures, "mjpeg")


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    codec: str,
    *,
    rotation: int = 0,
    times: Sequence[int] | None = None,
    rate: int = 24,
    **options: str,
) -> Path:
    """Write a video with any codec, in the container of the path's suffix.

    ``rotation`` (degrees, counter-clockwise) is a flag; ``times`` are the frames' places on a
    clock of 24 ticks a second, for a variable frame rate. ``rate``: frames per second.
    """
    height, width, _ = pictures[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"threads": "1", **options})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


VP9 = {"deadline": "realtime", "cpu-used": "8"}


def write_images(folder: Path, name: str, video: int, frames: int, suffix: str = ".png") -> Media:
    """Write a painted image sequence; PNGs have a fourth channel, as in ACRE."""
    paths = tuple(folder / f"{name}_{i:02d}{suffix}" for i in range(frames))
    for number, path in enumerate(paths):
        pixels = picture(video, number)
        if suffix == ".png":
            alpha = np.full((*pixels.shape[:2], 1), 255 * number // frames, np.uint8)
            pixels = np.concatenate([pixels, alpha], 2)
        Image.fromarray(pixels).save(path)
    return Media(name, paths)


def write_painted(path: Path, video: int, frames: int) -> Path:
    """Write a painted Motion-JPEG video with FFmpeg."""
    return write_avi(path, [picture(video, frame) for frame in range(frames)])


def blender_jpeg(pixels: np.ndarray) -> bytes:
    """Encode a frame as Blender does for CATER's format, AVI_JPEG.

    4:2:2, no JFIF header but an "AVI1" one, components numbered from 0, no Huffman tables.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling="4:2:2")
    jpeg = buffer.getvalue()
    out = bytearray(b"\xff\xd8\xff\xe0\x00\x3eAVI1\0" + b" " * 55)
    at, marker = 2, 0
    while marker != 0xDA:
        marker = jpeg[at + 1]
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segment = bytearray(jpeg[at:end])
        for component in range(3):
            if marker == 0xC0:  # frame header
                segment[10 + 3 * component] = component
            if marker == 0xDA:  # scan header
                segment[5 + 2 * component] = component
        if marker not in (0xC4, 0xE0):
            out += segment
        at = end
    return bytes(out + jpeg[at:])


def write_blender_avi(path: Path, pictures: Sequence[np.ndarray]) -> Path:
    """Write a video as Blender does: a list per frame, padding to 4 bytes, and an index."""
    height, width, _ = pictures[0].shape
    count = len(pictures)
    movi, index = b"movi", b""
    for pixels in pictures:
        jpeg = blender_jpeg(pixels)
        frame = _chunk(b"00db", jpeg + b"\0" * (-len(jpeg) % 4))
        record = _chunk(b"LIST", b"rec " + frame)
        index += struct.pack("<4sIII", b"rec ", 1, len(movi), len(record) - 8)
        index += struct.pack("<4sIII", b"00db", 16, len(movi) + 12, len(frame) - 8)
        movi += record
    main = struct.pack("<14I", 41667, 0, 0, 0x30, count, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = struct.pack("<4s4s10I4H", b"vids", b"mjpg", *(0, 0, 0, 1, 24, 0, count, 0, 10000, 0),
                         0, 0, 0, 0)  # fmt: skip
    bitmap = struct.pack("<3I2H4s5I", 40, width, height, 1, 24, b"MJPG", 0, 0, 0, 0, 0)
    streams = _chunk(b"LIST", b"strl" + _chunk(b"strh", stream) + _chunk(b"strf", bitmap))
    header = _chunk(b"LIST", b"hdrl" + _chunk(b"avih", main) + streams)
    header += _chunk(b"JUNK", bytes(2024 - 12 - len(header) - 8))
    body = header + _chunk(b"LIST", movi) + _chunk(b"idx1", index)
    path.write_bytes(_chunk(b"RIFF", b"AVI " + body))
    return path


def _chunk(name: bytes, payload: bytes) -> bytes:
    return name + struct.pack("<I", len(payload)) + payload


@cache
def scenes(count: int) -> list[np.ndarray]:
    """CATER-like pictures, uint8 [240, 320, 3]: shaded saturated discs on a lit grey floor."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :320].astype(np.float32)
    pictures = []
    for _ in range(count):
        light = 1 - ((x - 160) ** 2 + (y - 120) ** 2) / 130_000
        pixels = np.repeat((130 * light)[..., None], 3, -1)
        for colour in rng.integers(0, 256, (8, 3)):
            cx, cy, radius = rng.integers(20, 300), rng.integers(20, 220), rng.integers(8, 32)
            distance = np.hypot(x - cx, y - cy)
            shade = 1 - 0.5 * np.hypot(x - cx + radius / 3, y - cy + radius / 3) / (1.4 * radius)
            pixels = np.where((distance < radius)[..., None], colour * shade[..., None], pixels)
        pictures.append(pixels.clip(0, 255).astype(np.uint8))
    return pictures
