"""Frames of media as pixels: one interface, two decoders.

A frame is resized as a whole (or, where asked for, a part of it) to a square with a triangle filter
that widens when it shrinks (antialiased). Transparency is dropped, not blended; rotation flags are
followed. The decoders agree within :data:`TOLERANCE`; they differ in how they enlarge the halved
colour planes and in rounding, so a store remembers which decoder made it.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.crop import WHOLE, Crop
from ivcl_fast.data.workers import usable_cpus
from ivcl_fast.errors import UserError

if TYPE_CHECKING:
    from ivcl_fast.data.decode.probe import (
        VideoInfo,  # imports PyAV, which who reads a store does not need
    )

DecoderName = Literal["auto", "dali", "pyav"]
Chosen = Literal["dali", "pyav"]

DALI_CPU_CODECS = ("mjpeg", "png", "vp8", "vp9")
DALI_GPU_CODECS = (*DALI_CPU_CODECS, "h264", "hevc", "av1", "mpeg4")
NVDEC_LEAST_SIZE = {"hevc": 144, "vp9": 128, "av1": 128}
"""Height and width that NVDEC must at least have, of the codecs that have such a limit."""
SLOWEST = 10.0
"""Frames per second; a decoder that is slower hangs."""
NVDECS = 7
"""Video decoders of an H100; a DALI pipeline drives one, so as many pipelines keep all busy."""


class Tolerance(NamedTuple):
    """Largest difference between the decoders' frames, in levels of 255."""

    mean: float
    maximum: int


TOLERANCE = Tolerance(mean=0.6, maximum=48)


class Decoder(Protocol):
    """Decodes media to square frames of one size."""

    name: str
    image_size: int

    def decode(
        self,
        media: Media,
        frame_ids: Sequence[int] | np.ndarray | None = None,
        crop: Crop = WHOLE,
    ) -> torch.Tensor:
        """uint8 RGB ``[F, 3, S, S]`` on the decoder's device: the frames asked for in that order,
        or every frame.

        Raises :class:`~ivcl_fast.data.dataset.VideoError` if a file is not whole or cannot be
        decoded, ``IndexError`` if a frame asked for does not exist.
        """


def choose_decoder(info: VideoInfo, wanted: DecoderName) -> tuple[Chosen, str]:
    """The decoder for media of that kind on this machine, and why.

    Raises :class:`UserError` if ``wanted`` is DALI and it has no decoder for the codec here.
    """
    if wanted == "pyav":
        return "pyav", "it was asked for"
    gpu = torch.cuda.is_available()
    codecs = DALI_GPU_CODECS if gpu else DALI_CPU_CODECS
    missing = f"DALI has no {'GPU' if gpu else 'CPU'} decoder for {info.codec}"
    if wanted == "dali":
        resolve_decoder(wanted)
        if info.codec not in codecs:
            raise UserError(
                f"decoder: {missing} (it has {', '.join(codecs)}); use --decoder auto or pyav"
            )
        return "dali", "it was asked for"
    if not _dali_installed():
        return "pyav", "DALI is not installed"
    if not gpu:
        return "pyav", "there is no GPU for DALI, and on a CPU PyAV is faster"
    if info.codec not in codecs:
        return "pyav", missing
    if min(info.width, info.height) < NVDEC_LEAST_SIZE.get(info.codec, 0):
        return "pyav", f"frames of {info.width} x {info.height} are too small for the GPU's decoder"
    return "dali", "DALI decodes it on the GPU"


def resolve_decoder(wanted: DecoderName) -> Chosen:
    """The decoder of that name, or the one ``auto`` prefers here.

    Raises :class:`UserError` for an unknown name and for ``dali`` where it is not installed.
    """
    if wanted not in get_args(DecoderName):
        raise UserError(f"decoder: {wanted!r} is not one of {', '.join(get_args(DecoderName))}")
    if wanted == "pyav":
        return "pyav"
    if wanted == "auto":
        return "dali" if _dali_installed() and torch.cuda.is_available() else "pyav"
    if not _dali_installed():
        raise UserError(
            "decoder: dali is not installed; pip install 'ivcl_fast[dali]', or use pyav"
        )
    return "dali"


def default_workers(decoder: Chosen) -> int:
    """Processes, or threads, that decode: one per CPU, or one per NVDEC where those decode."""
    cpus = usable_cpus()
    return min(cpus, NVDECS) if decoder == "dali" and torch.cuda.is_available() else cpus


def patience(stall_seconds: float, frames: Iterable[int]) -> float:
    """How long to wait for a decoder, given the lengths of the videos: longer for a long one."""
    return max(stall_seconds, max(frames, default=0) / SLOWEST)


_kept = threading.local()


def make_decoder(decoder: Chosen, image_size: int) -> Decoder:
    """The decoder of that name. Each thread keeps its last ones, for DALI takes a while to start,
    and neither decoder can serve two threads at once."""
    made: dict[tuple[str, int], Decoder] = _kept.__dict__.setdefault("decoders", {})
    if (decoder, image_size) not in made:
        for other in [key for key in made if key[1] != image_size]:
            del made[other]
        made[decoder, image_size] = _new_decoder(decoder, image_size)
    return made[decoder, image_size]


def _new_decoder(decoder: Chosen, image_size: int) -> Decoder:
    if decoder == "pyav":
        from ivcl_fast.data.decode.pyav import PyAVDecoder

        return PyAVDecoder(image_size)
    from ivcl_fast.data.decode.dali import DALIDecoder

    return DALIDecoder(image_size)


def _dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False
