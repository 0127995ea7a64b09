"""Data benchmarks: batches from a frame store, and building one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Benchmark, Setup
from benchmarks.ops import draw_ids
from benchmarks.results import require
from ivcl_fast import IVCLConfig, reference
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.models.reference import patchify

CFG, CLIPS = IVCLConfig.preset("tiny"), 8
VIDEOS = 3


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
]  # fmt: skip
