"""The choice between DALI and PyAV.

The decoders agree within :data:`TOLERANCE`; they differ in chroma upsampling and rounding, so a
store records its decoder.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, get_args

import torch

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.info import VideoInfo
from ivcl_fast.data.decode.interface import NVDECS, ChosenDecoder, Decoder, DecoderName
from ivcl_fast.data.decode.media import open_media
from ivcl_fast.data.workers import MAX_TIMEOUT, usable_cpus
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

DALI_CODECS = ("mjpeg", "png", "vp8", "vp9", "h264", "hevc", "av1", "mpeg4")
"""Codecs that DALI decodes on a GPU, depending on its generation."""
MIN_RATE = 10.0
"""Frames per second below which a decoder counts as stuck."""
TRIAL_SIZE, TRIAL_FRAMES = 32, 16
"""Size and largest number of the frames of a trial."""
TRIAL_DIFFERENCE = 2.0
"""Largest mean difference in a trial, in levels of 255. On a CPU, DALI's was up to 0.8; a wrong
range of colours gives 2.1 to 15."""


class Tolerance(NamedTuple):
    """Largest difference between the frames of the decoders, in levels of 255."""

    mean: float
    maximum: int


TOLERANCE = Tolerance(mean=0.6, maximum=48)


def choose_decoder(info: VideoInfo, decoder: DecoderName) -> tuple[ChosenDecoder, str]:
    """Choose the decoder for media on this machine; also return the reason, for the log."""
    if decoder != "auto":
        return resolve_decoder(decoder), "it was requested"
    if not _dali_installed():
        return "pyav", "DALI is not installed"
    if not torch.cuda.is_available():
        return "pyav", "DALI is slower without a GPU"
    if info.codec not in DALI_CODECS:
        return "pyav", f"DALI has no decoder for {info.codec}"
    if info.warning:
        return "pyav", f"DALI may read it differently: {info.warning}"
    return "dali", "DALI decodes it on the GPU"


def choose_decoders(
    media: Sequence[Media],
    infos: Mapping[str, VideoInfo],
    decoder: DecoderName,
    gpu: int | None = None,
) -> dict[str, ChosenDecoder]:
    """Choose a decoder for each of the media, and log the choices with their reasons.

    A trial shows what this GPU decodes, as that depends on its generation, its driver and the
    container: DALI's first frames of one file of each codec and container are compared with
    FFmpeg's. If the trial fails, ``auto`` chooses PyAV, and ``dali`` raises :class:`UserError`.
    """
    choices: dict[str, tuple[ChosenDecoder, str]] = {}
    trials: dict[tuple[str, str], str | None] = {}
    for one in media:
        if (info := infos.get(one.name)) is None:
            continue
        choice = choose_decoder(info, decoder)
        if choice[0] == "dali" and torch.cuda.is_available():
            kind = info.codec, one.files[0].suffix.lower()
            if kind not in trials:
                trials[kind] = _dali_fails(one, gpu)
            if (reason := trials[kind]) and decoder == "dali":
                raise UserError(
                    f"--decoder: expected auto or pyav for {info.codec} on this GPU, got dali: "
                    f"{reason}"
                )
            if reason:
                choice = "pyav", f"DALI fails on this GPU: {reason}"
        choices[one.name] = choice
    counts = Counter((infos[name].codec, *choice) for name, choice in choices.items())
    for (codec, name, reason), count in counts.items():
        log.info("decoder: %s for %d %s files, because %s", name, count, codec, reason)
    return {name: choice[0] for name, choice in choices.items()}


def _dali_fails(media: Media, gpu: int | None) -> str | None:
    """Decode the first frames by DALI and compare them with FFmpeg's; return why that fails."""
    try:
        from ivcl_fast.data.decode.dali import DALIDecoder

        with open_media(media) as opened:
            ids = range(min(TRIAL_FRAMES, opened.info.frames))
            frames = DALIDecoder(TRIAL_SIZE, gpu).decode_by_dali(opened, ids)
    except Exception as error:  # a DALI that does not fit the driver may raise anything
        reason = str(error).rpartition("encountered:")[2].strip()  # after the pipeline's code
        return (reason.splitlines() or [type(error).__name__])[0][:200]
    return "its frames differ from FFmpeg's" if _differ(frames, media) else None


def _differ(frames: torch.Tensor, media: Media) -> bool:
    """Whether DALI's first frames ``[F, 3, S, S]`` have other colours or another order."""
    from ivcl_fast.data.decode.pyav import PyAVDecoder

    try:
        expected = PyAVDecoder(TRIAL_SIZE).decode(media, range(len(frames)))
    except VideoError:  # there is nothing to compare with
        return False
    flat, flat_expected = (x.cpu().float().flatten(1) for x in (frames, expected))
    differences = torch.cdist(flat, flat_expected, p=1) / flat.shape[1]  # [F, F]
    same = differences.diagonal()
    moved = (same > TOLERANCE.mean) & (same > 2 * differences.amin(1))
    return bool(same.mean() > TRIAL_DIFFERENCE or moved.any())


def resolve_decoder(decoder: DecoderName) -> ChosenDecoder:
    """Return the decoder to use; for ``auto``, the one preferred on this machine.

    Raises :class:`UserError` for an unknown name, and for ``dali`` if it is not installed.
    """
    if decoder not in (names := get_args(DecoderName)):
        raise UserError(f"decoder: expected one of {', '.join(names)}, got {decoder!r}")
    if decoder == "auto":
        return "dali" if torch.cuda.is_available() and _dali_installed() else "pyav"
    if decoder == "dali" and not _dali_installed():
        raise UserError(
            "decoder: dali is not installed; install it with pip install 'ivcl_fast[dali]'"
        )
    return decoder


def default_workers(decoders: Iterable[ChosenDecoder]) -> int:
    """Return the default number of workers: one per CPU, or at most one per NVDEC with DALI."""
    cpus = usable_cpus()
    return min(cpus, NVDECS) if "dali" in decoders and torch.cuda.is_available() else cpus


def decoding_timeout(stall_seconds: float, frames: Iterable[int]) -> float:
    """Return the timeout in seconds: at least ``stall_seconds``, longer for long videos.

    ``frames``: number of frames of each video.
    """
    return max(stall_seconds, min(MAX_TIMEOUT, max(frames, default=0) / MIN_RATE))


_kept = threading.local()


def make_decoder(decoder: ChosenDecoder, image_size: int, gpu: int | None = None) -> Decoder:
    """Return a decoder for this thread.

    ``gpu``: index of the GPU for DALI; by default the current one. Each thread keeps its decoders
    of the last size, because DALI takes long to start.
    """
    made: dict[tuple[str, int, int | None], Decoder] = _kept.__dict__.setdefault("decoders", {})
    key = decoder, image_size, gpu
    if key not in made:
        for other in [other for other in made if other[1:] != key[1:]]:
            del made[other]
        if decoder == "pyav":
            from ivcl_fast.data.decode.pyav import PyAVDecoder

            made[key] = PyAVDecoder(image_size)
        else:
            from ivcl_fast.data.decode.dali import DALIDecoder

            made[key] = DALIDecoder(image_size, gpu)
    return made[key]


def _dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False
