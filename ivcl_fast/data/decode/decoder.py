"""Frames of media as pixels: two decoders, and the choice between them.

A frame, or a part of it, is resized to a square with a triangle filter that widens when it shrinks
the frame (antialiasing). Transparency is dropped, not blended; flags and EXIF data that turn or
mirror frames are followed. The decoders agree within :data:`TOLERANCE`: they differ in how they
enlarge the halved colour planes and in rounding, so a store records which decoder made it.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch

from ivcl_fast.data.crop import WHOLE, Crop, Square
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.media import FrameIds, OpenMedia, VideoInfo, open_media
from ivcl_fast.data.workers import MAX_TIMEOUT, usable_cpus
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

DecoderName = Literal["auto", "dali", "pyav"]
ChosenDecoder = Literal["dali", "pyav"]

NVDECS = 7
"""Video decoders of an H100; each DALI pipeline uses one, so 7 pipelines use all."""
DALI_CPU_CODECS = ("mjpeg", "png", "vp8", "vp9")
DALI_GPU_CODECS = (*DALI_CPU_CODECS, "h264", "hevc", "av1", "mpeg4")
NVDEC_MIN_SIZE = {"hevc": 144, "vp9": 128, "av1": 128}
"""Least height and width that NVDEC decodes, for codecs that have such a limit."""
MIN_RATE = 10.0
"""Frames per second; a slower decoder is taken to hang."""
TRIALS = 3
"""Number of media of a codec and container, of which a GPU has to decode one."""
TRIAL_SIZE, TRIAL_FRAMES = 32, 16
"""Size of the trial's frames, and their number, at most."""
TRIAL_DIFFERENCE = 2.0
"""Largest mean difference in a trial, in levels of 255. DALI's on a CPU was up to 0.3 for scenes
and 0.8 for noise; colours taken for those of the full range would differ by 2.1 to 15 in them."""
DIFFER = "its frames differ from FFmpeg's"


class Tolerance(NamedTuple):
    """Largest difference between the frames of the decoders, in levels of 255."""

    mean: float
    maximum: int


TOLERANCE = Tolerance(mean=0.6, maximum=48)


class Decoder(ABC):
    """Decodes media to square frames of one size; serves one thread at a time.

    Example::

        >>> decoder = make_decoder("pyav", 64)
        >>> decoder.decode(Media("a", (Path("a.avi"),)), [0, 12, 24]).shape
        torch.Size([3, 3, 64, 64])
    """

    part_bytes = 2**26
    """Most bytes of frames in one of :meth:`parts`."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def decode(self, media: Media, frame_ids: FrameIds = None, crop: Crop = WHOLE) -> torch.Tensor:
        """Decode the given frames in the given order, or all: uint8 RGB ``[F, 3, S, S]``.

        ``crop``: the part of the frames to decode. The frames are on the decoder's device. Raises
        :class:`~ivcl_fast.data.dataset.VideoError` if a file is not complete or cannot be decoded,
        ``IndexError`` if there is no such frame.
        """
        with open_media(media) as opened:
            return self.decode_open(opened, frame_ids, crop)

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        """Decode all frames, a part at a time: uint8 RGB ``[F, 3, S, S]``, in order.

        So videos of any length take the same memory, except that DALI holds an encoded video as a
        whole. Raises :class:`~ivcl_fast.data.dataset.VideoError` as :meth:`decode`, possibly after
        some parts.
        """
        with open_media(media) as opened:
            frames, crop = opened.info.frames, opened.info.square(square)
            for start in range(0, frames, self.part_frames):
                ids = range(start, min(start + self.part_frames, frames))
                yield self.decode_open(opened, ids, crop)

    @property
    def part_frames(self) -> int:
        """Number of frames of each of :meth:`parts` but the last."""
        return max(1, self.part_bytes // (3 * self.image_size**2))

    @abstractmethod
    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, crop: Crop = WHOLE
    ) -> torch.Tensor:
        """As :meth:`decode`, for media that are open already, for example to probe them first."""


def decoding_gpu(device: torch.device | None) -> int | None:
    """Return the index of the GPU on which a run on ``device`` decodes, None without a GPU.

    Processes and threads that decode are told the index: they have a current GPU of their own.
    """
    if not torch.cuda.is_available():
        return None
    if device is not None and device.type == "cuda" and device.index is not None:
        return device.index
    return torch.cuda.current_device()


def choose_decoder(info: VideoInfo, decoder: DecoderName) -> tuple[ChosenDecoder, str]:
    """Choose the decoder for media on this machine; also return the reason, for the log.

    Raises :class:`UserError` if ``decoder`` is ``dali``, which cannot decode the codec here.
    """
    if decoder == "pyav":
        return "pyav", "it was asked for"
    gpu = torch.cuda.is_available()
    codecs = DALI_GPU_CODECS if gpu else DALI_CPU_CODECS
    missing = f"DALI has no {'GPU' if gpu else 'CPU'} decoder for {info.codec}"
    if decoder == "dali":
        resolve_decoder(decoder)
        if info.codec not in codecs:
            raise UserError(
                f"decoder: {missing} (it has {', '.join(codecs)}); accepted: auto, pyav"
            )
        return "dali", "it was asked for"
    if not _dali_installed():
        return "pyav", "DALI is not installed"
    if not gpu:
        return "pyav", "there is no GPU for DALI, and on a CPU PyAV is faster"
    if info.codec not in codecs:
        return "pyav", missing
    if info.warning:
        return "pyav", f"DALI may read it differently: {info.warning}"
    if min(info.width, info.height) < NVDEC_MIN_SIZE.get(info.codec, 0):
        return "pyav", f"frames of {info.width} x {info.height} are too small for the GPU's decoder"
    return "dali", "DALI decodes it on the GPU"


def choose_decoders(
    media: Sequence[Media],
    infos: Mapping[str, VideoInfo],
    decoder: DecoderName,
    gpu: int | None = None,
) -> dict[str, ChosenDecoder]:
    """Choose a decoder for each of the media; logs each choice with the reason, once per codec.

    Only a trial shows what a GPU can decode: codecs differ between generations, containers may
    lack the driver's library for videos, and the driver may be too old for DALI. The frames may
    also have other colours than FFmpeg's, or another order. Where DALI fails on the GPU of this
    index, ``auto`` takes PyAV, and ``dali`` raises :class:`UserError`; of frames that only differ,
    ``dali`` warns.
    """
    by_kind: dict[tuple[str, str], list[Media]] = {}
    choices: dict[str, tuple[ChosenDecoder, str]] = {}
    for one in media:
        if (info := infos.get(one.name)) is not None:
            choices[one.name] = choose_decoder(info, decoder)
            if choices[one.name][0] == "dali":
                by_kind.setdefault((info.codec, one.files[0].suffix.lower()), []).append(one)
    for (codec, _), those in by_kind.items() if torch.cuda.is_available() else ():
        if reason := _dali_fails(those[:TRIALS], gpu):
            if decoder == "dali" and reason == DIFFER:
                log.warning("decoder: DALI as asked for, but of %s files %s", codec, reason)
                continue
            if decoder == "dali":
                raise UserError(
                    f"decoder: DALI cannot decode {codec} on this GPU ({reason}); accepted: auto, "
                    "pyav"
                )
            choices |= {
                one.name: ("pyav", f"DALI cannot decode it on this GPU ({reason})") for one in those
            }
    counts = Counter((infos[name].codec, *choice) for name, choice in choices.items())
    for (codec, name, reason), count in counts.items():
        log.info("decoder: %s for %d %s files, because %s", name, count, codec, reason)
    return {name: choice[0] for name, choice in choices.items()}


def _dali_fails(media: Sequence[Media], gpu: int | None) -> str | None:
    """Decode the first frames of each of the media; return a reason in one line if none succeeds,
    or if those of the first that does are not FFmpeg's."""
    reason = None
    for one in media:
        try:
            from ivcl_fast.data.decode.dali import DALIDecoder

            with open_media(one) as opened:
                ids = range(min(TRIAL_FRAMES, opened.info.frames))
                frames = DALIDecoder(TRIAL_SIZE, gpu).decode_by_dali(opened, ids)
        except Exception as error:  # a library that does not fit the driver may raise anything
            said = str(error).rpartition("encountered:")[2].strip()  # after the pipeline's code
            reason = (said.splitlines() or [type(error).__name__])[0][:200]
        else:
            return DIFFER if _differ(frames, one) else None
    return reason


def _differ(frames: torch.Tensor, media: Media) -> bool:
    """Whether DALI's first frames ``[F, 3, S, S]`` have other colours than FFmpeg's, or if one is
    much more like another of FFmpeg's than like its own, another order."""
    from ivcl_fast.data.decode.pyav import PyAVDecoder

    try:
        own = PyAVDecoder(TRIAL_SIZE).decode(media, range(len(frames)))
    except VideoError:  # there is nothing to compare with
        return False
    flat, flat_own = (x.cpu().float().flatten(1) for x in (frames, own))
    differences = torch.cdist(flat, flat_own, p=1) / flat.shape[1]  # [F, F]
    of_own = differences.diagonal()
    moved = (of_own > TOLERANCE.mean) & (of_own > 2 * differences.amin(1))
    return bool(of_own.mean() > TRIAL_DIFFERENCE or moved.any())


def resolve_decoder(decoder: DecoderName) -> ChosenDecoder:
    """Return the decoder that ``decoder`` names; for ``auto`` the one preferred on this machine.

    Raises :class:`UserError` for an unknown name, and for ``dali`` if it cannot run here.
    """
    if decoder not in get_args(DecoderName):
        raise UserError(f"decoder: {decoder!r} is not one of {', '.join(get_args(DecoderName))}")
    if decoder == "auto":
        return "dali" if torch.cuda.is_available() and _dali_installed() else "pyav"
    if decoder == "dali" and not _dali_installed():
        raise UserError(
            "decoder: dali is not installed; install it with pip install 'ivcl_fast[dali]', or "
            "use auto or pyav"
        )
    return decoder


def default_workers(decoders: Iterable[ChosenDecoder]) -> int:
    """Default number of processes or threads for media with these decoders: one per CPU; one per
    NVDEC if DALI decodes any of them on a GPU, whose memory each of its pipelines takes a part of.
    """
    cpus = usable_cpus()
    return min(cpus, NVDECS) if "dali" in decoders and torch.cuda.is_available() else cpus


def decoding_timeout(stall_seconds: float, frames: Iterable[int]) -> float:
    """Return how many seconds to wait for a decoder: longer than ``stall_seconds`` for long videos.

    ``frames``: the numbers of frames of the videos.
    """
    return max(stall_seconds, min(MAX_TIMEOUT, max(frames, default=0) / MIN_RATE))


_kept = threading.local()


def make_decoder(decoder: ChosenDecoder, image_size: int, gpu: int | None = None) -> Decoder:
    """Return this thread's decoder of that name and size.

    ``gpu`` is the index of the GPU that DALI decodes on, where there is one; by default the
    current one of this thread. Each thread keeps its decoders of the last size, because DALI takes
    long to start and a decoder cannot serve two threads.
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
