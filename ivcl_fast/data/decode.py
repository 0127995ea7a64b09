"""Video frames as pixels: one interface, two decoders.

A frame is resized as a whole to a square with a triangle filter that widens when it shrinks
(antialiased). The decoders agree within :data:`TOLERANCE`; they differ in how they enlarge the
halved colour planes and in rounding, so a store remembers which decoder made it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ..errors import UserError
from .index import VideoError, read_jpegs

DecoderName = Literal["auto", "dali", "pyav"]


class Tolerance(NamedTuple):
    """Largest difference between the decoders' frames, in levels of 255."""

    mean: float
    maximum: int


TOLERANCE = Tolerance(mean=0.6, maximum=48)


class Decoder(Protocol):
    """Decodes Motion-JPEG videos to square frames of one size."""

    name: str
    image_size: int

    def decode(self, path: Path, frame_ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """uint8 RGB ``[F, 3, S, S]``: the frames asked for in that order, or every frame.

        Raises :class:`VideoError` if the file is not whole or cannot be decoded, ``IndexError`` if
        a frame asked for does not exist.
        """


class PyAVDecoder:
    """FFmpeg through PyAV, on the CPU."""

    name = "pyav"

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._reformatter = VideoReformatter()

    def decode(self, path: Path, frame_ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        jpegs = read_jpegs(path, frame_ids)
        out = np.empty((len(jpegs), 3, self.image_size, self.image_size), np.uint8)
        context = av.VideoCodecContext.create("mjpeg", "r")
        context.thread_count = 1
        context.options = {"err_detect": "explode"}
        for number, jpeg in enumerate(jpegs):
            try:
                (frame,) = context.decode(av.Packet(jpeg))
            except (av.FFmpegError, ValueError):
                raise VideoError("FFmpeg cannot decode one of its frames") from None
            self._resize(frame, out[number])
        return out

    def _resize(self, frame: VideoFrame, out: np.ndarray) -> None:
        # To planar RGB: into packed RGB FFmpeg halves the colour planes' width on the way, which
        # shows at 64 pixels.
        size = self.image_size
        planar = self._reformatter.reformat(
            frame, size, size, "gbrp", interpolation="BILINEAR", threads=1
        )
        for channel, plane in zip((1, 2, 0), planar.planes, strict=True):
            out[channel] = np.frombuffer(bytes(plane), np.uint8).reshape(size, -1)[:, :size]


def choose_decoder() -> tuple[Literal["dali", "pyav"], str]:
    """What ``auto`` stands for here, and why: DALI on a GPU; on a CPU PyAV is the faster one."""
    if not _dali_installed():
        return "pyav", "DALI is not installed"
    if not torch.cuda.is_available():
        return "pyav", "there is no GPU for DALI, and on a CPU PyAV is faster"
    return "dali", "DALI decodes on the GPU"


def resolve_decoder(decoder: DecoderName) -> Literal["dali", "pyav"]:
    """The decoder of that name, or what ``auto`` stands for here.

    Raises :class:`UserError` for an unknown name and for ``dali`` where it is not installed.
    """
    if decoder not in get_args(DecoderName):
        raise UserError(f"decoder: {decoder!r} is not one of {', '.join(get_args(DecoderName))}")
    if decoder == "pyav":
        return "pyav"
    if decoder == "auto":
        return choose_decoder()[0]
    if not _dali_installed():
        raise UserError(
            "decoder: dali is not installed; pip install 'ivcl_fast[dali]', or use pyav"
        )
    return "dali"


@lru_cache(maxsize=1)
def make_decoder(decoder: Literal["dali", "pyav"], image_size: int) -> Decoder:
    """The decoder of that name; the last one made is kept, for DALI takes a while to start."""
    if decoder == "pyav":
        return PyAVDecoder(image_size)
    from .decode_dali import DALIDecoder

    return DALIDecoder(image_size)


def _dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False
