"""The choice between DALI and PyAV.

The decoders agree within :data:`~ivcl_fast.data.decode.pyav.TOLERANCE`; they differ in chroma
upsampling and rounding, so a store records its decoder.
"""

from __future__ import annotations

import importlib.util
import threading
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ivcl_fast.data.workers import NVDECS, usable_cpus
from ivcl_fast.errors import UserError

if TYPE_CHECKING:
    from ivcl_fast.data.decode.pyav import PyAVDecoder

DecoderName = Literal["auto", "dali", "pyav"]
ChosenDecoder = Literal["dali", "pyav"]


def resolve_decoder(decoder: DecoderName) -> ChosenDecoder:
    """Return the decoder to use; for ``auto`` DALI if it can use a GPU, otherwise PyAV.

    Raises :class:`UserError` for an unknown name, and for ``dali`` if it is not installed.
    """
    if decoder not in (names := get_args(DecoderName)):
        raise UserError(f"decoder: expected one of {', '.join(names)}, got {decoder!r}")
    if decoder == "auto":  # without a GPU, DALI is slower than PyAV
        return "dali" if torch.cuda.is_available() and _dali_installed() else "pyav"
    if decoder == "dali" and not _dali_installed():
        raise UserError(
            "decoder: expected auto or pyav without DALI, which pip install 'ivcl_fast[dali]' "
            "installs, got dali"
        )
    return decoder


def default_workers(decoder: ChosenDecoder) -> int:
    """Return the default number of workers: one per CPU, or at most one per NVDEC with DALI."""
    cpus = usable_cpus()
    return min(cpus, NVDECS) if decoder == "dali" and torch.cuda.is_available() else cpus


def decoding_gpu(device: torch.device | None) -> int | None:
    """Return the index of the GPU on which a run on ``device`` decodes; None without a GPU.

    The index is passed to worker processes and threads, whose current GPU may differ.
    """
    if not torch.cuda.is_available():
        return None
    if device is not None and device.type == "cuda" and device.index is not None:
        return device.index
    return torch.cuda.current_device()


_kept = threading.local()


def make_decoder(decoder: ChosenDecoder, image_size: int, gpu: int | None = None) -> PyAVDecoder:
    """Return a decoder for this thread.

    ``gpu``: index of the GPU for DALI; by default the current one. The last decoder of each thread
    is used again, because DALI takes long to start.
    """
    key = decoder, image_size, gpu
    if _kept.__dict__.get("key") != key:
        if decoder == "pyav":
            from ivcl_fast.data.decode.pyav import PyAVDecoder

            _kept.decoder = PyAVDecoder(image_size)
        else:
            from ivcl_fast.data.decode.dali import DALIDecoder

            _kept.decoder = DALIDecoder(image_size, decoding_gpu(None) if gpu is None else gpu)
        _kept.key = key
    return _kept.decoder


def _dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False
