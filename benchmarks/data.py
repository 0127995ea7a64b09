"""Data benchmarks: batches from a frame store, building a store, and clips of long videos."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import Benchmark, Setup
from benchmarks.ops import draw_ids
from benchmarks.results import require
from ivcl_fast import IVCLConfig, load_clip, reference
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.models.reference import patchify

CFG, CLIPS = IVCLConfig.preset("tiny"), 8
STRIDE = 4
VIDEOS = 3
LONG = 3 * 301
"""Frames of a long video."""
CODECS = {"mjpeg": "Motion-JPEG", "libx264": "H.264", "libvpx-vp9": "VP9", "libx265": "HEVC"}
CODEC_OPTIONS = {
    "libx264": {"sc_threshold": "0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libx265": {"x265-params": "log-level=none:scenecut=0", "preset": "ultrafast"},
}


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for videos and stores that is deleted with the process."""
    return tempfile.TemporaryDirectory(prefix="ivcl-bench-")


@functools.cache
def videos() -> list[Media]:
    """Write synthetic CATER videos: Motion-JPEG, 320x240, 301 frames each."""
    require("av")
    from ivcl_fast.data.synthetic.cater.write import SyntheticCater
    from ivcl_fast.data.synthetic.writer import write_dataset

    data = Path(folder().name) / "cater"
    write_dataset(data, SyntheticCater("full", train=VIDEOS, val=0), workers=1)
    files = sorted((data / "videos").iterdir())
    return [Media(file.stem, (file,)) for file in files]


def build(path: Path) -> FrameStore:
    """Build a store of the videos."""
    from ivcl_fast.data.store.build import build_store

    return build_store(videos(), path, CFG.image_size, CFG.patch_size, "pyav", workers=1)


def batches() -> Setup:
    """Set up the visible patches of a pretraining batch, from a store or by decoding its frames."""
    media = [videos()[i % VIDEOS] for i in range(CLIPS)]
    from ivcl_fast.data.decode.decoder import make_decoder

    store, decoder = build(Path(folder().name) / "store"), make_decoder("pyav", CFG.image_size)
    frames = [frame_ids(store.num_frames(one.name), CFG.num_frames, None) for one in media]
    keep = draw_ids(CFG, CLIPS * CFG.num_frames)[0].cpu()

    def visible(rows: Tensor) -> Tensor:
        return reference.take_rows(rows.flatten(0, 1), keep)

    def from_store() -> Tensor:
        return visible(store.batch([one.name for one in media], frames))

    def decoded() -> Tensor:
        clips = [decoder.decode(*clip) for clip in zip(media, frames, strict=True)]
        return visible(patchify(torch.stack(clips), CFG.patch_size))

    return Setup(
        {"ours, frame store": lambda: [from_store], "decoded, PyAV": lambda: [decoded]}, decoded()
    )


def builds() -> Setup:
    """Set up a store, with patches, checksums and safe writing, against decoding and resizing."""
    media = videos()
    from ivcl_fast.data.decode.decoder import make_decoder

    decoder = make_decoder("pyav", CFG.image_size)

    def build_once() -> None:
        with tempfile.TemporaryDirectory(dir=folder().name) as fresh:
            build(Path(fresh) / "store")

    return Setup(
        {
            "ours, whole store": lambda: [build_once],
            "bare decode and resize": lambda: [lambda: [decoder.decode(one) for one in media]],
        }
    )


@functools.cache
def long_video(codec: str, gop: int) -> Path:
    """Write the frames of the videos as one, with a key frame every ``gop`` frames."""
    import av
    from av.video.frame import PictureType

    path = Path(folder().name) / f"{codec}-{gop}.{'avi' if codec == 'mjpeg' else 'mkv'}"
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, 24, {"g": str(gop), **CODEC_OPTIONS.get(codec, {})})
        stream.width, stream.height = 320, 240
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(LONG):
            if number % 301 == 0:
                frames = av.open(str(videos()[number // 301].files[0])).decode(video=0)
            frame = next(frames).reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            frame.pict_type = PictureType.NONE  # or each would be a key frame, as in Motion-JPEG
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def long_clip(codec: str, gop: int) -> Setup:
    """Set up every fourth frame in the middle of a long video, with and without seeking."""
    from ivcl_fast.data import stream
    from ivcl_fast.data.decode import decoder, video

    path = long_video(codec, gop)
    info = decoder.probe(media := Media(path.stem, (path,)))
    ids = frame_ids(info.frames, CFG.num_frames, stride=STRIDE)
    how = "none", CFG.patch_size, "pyav", CFG.image_size

    class FromTheStart(video.OpenVideo):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.has_images = False  # do not choose packets

        def _starts(self, wanted: Sequence[int]) -> list[tuple[int, int]]:
            return []

    def streamed() -> Tensor:
        return torch.from_numpy(stream.decode_clip(media, info, ids, *how))

    def loaded() -> Tensor:
        return patchify(load_clip(path, CFG, "pyav", STRIDE)[0], CFG.patch_size)

    def without_seeking(call: Callable[[], Tensor]) -> Tensor:
        with mock.patch.object(decoder, "OpenVideo", FromTheStart):
            return call()

    return Setup(
        {
            "ours, stream": lambda: [streamed],
            "stream, without seeking": lambda: [lambda: without_seeking(streamed)],
            "ours, load_clip": lambda: [loaded],
            "load_clip, without seeking": lambda: [lambda: without_seeking(loaded)],
        },
        streamed(),
    )


def long_clip_benchmark(codec: str, gop: int) -> Benchmark:
    return Benchmark(
        name=f"clip of a video of {LONG} frames, 320x240 {CODECS[codec]}, GOP {gop}",
        setup=functools.partial(long_clip, codec, gop), tolerance=0,
        implementations=("ours, stream", "stream, without seeking", "ours, load_clip",
                         "load_clip, without seeking"),
        facts={"count": CFG.num_frames, "unit": "frames"},
    )  # fmt: skip


BENCHMARKS = [
    Benchmark(
        name=f"visible patches of {CLIPS} clips, 320x240 Motion-JPEG", setup=batches, tolerance=0,
        implementations=("ours, frame store", "decoded, PyAV"),
        facts={"bytes": CLIPS * CFG.num_frames * 2 * CFG.num_keep * CFG.patch_dim, "count": CLIPS,
               "unit": "clips"},
    ),
    Benchmark(
        name=f"store of {VIDEOS * 301} frames, 320x240 Motion-JPEG", setup=builds,
        implementations=("ours, whole store", "bare decode and resize"),
        facts={"count": VIDEOS * 301, "unit": "frames"},
    ),
    long_clip_benchmark("mjpeg", 1),
    *(long_clip_benchmark(codec, gop) for codec in CODEC_OPTIONS for gop in (12, 250)),
]  # fmt: skip
