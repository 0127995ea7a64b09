"""What a training step waits for: clips from the frame store, the store itself, and the import."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

from benchmarks.conftest import race_tests
from benchmarks.race import DEVICE, Race
from benchmarks.shapes import CLIPS, PRESET, draw_ids
from ivcl_fast import IVCLConfig, reference
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.patches import patchify
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater

CFG = IVCLConfig.preset(PRESET)
VIDEOS, SIZE = 3, "320x240"


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Gone when the run ends."""
    return tempfile.TemporaryDirectory(prefix="ivcl-bench-")


@functools.cache
def videos(codec: str) -> list[Media]:
    """Synthetic CATER at its full size: 301 frames each."""
    data = Path(folder().name) / "cater"
    write_cater(data, SyntheticCater("full", train=VIDEOS, val=0), workers=1)
    files = sorted((data / "videos").iterdir())
    if codec == "vp9":
        files = [as_vp9(file, file.with_suffix(".webm")) for file in files]
    return [Media(file.stem, (file,)) for file in files]


def as_vp9(source: Path, target: Path) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream(
            "libvpx-vp9", rate=24, options={"deadline": "realtime", "cpu-used": "8"}
        )
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame.reformat(format="yuv420p")))
        new.mux(stream.encode(None))
    return target


def batches() -> dict[str, Callable[[], Tensor]]:
    """A pretraining batch: the visible patches of some clips."""
    media = [videos("mjpeg")[i % VIDEOS] for i in range(CLIPS)]
    store = FrameStore(build(videos("mjpeg"), "batches"))
    frames = [frame_ids(store.num_frames(one.name), CFG.num_frames, None) for one in media]
    keep = draw_ids(CFG, CLIPS * CFG.num_frames)[0].cpu()
    decoder = make_decoder("pyav", CFG.image_size)

    def visible(rows: Tensor) -> Tensor:
        return reference.take_rows(rows.flatten(0, 1), keep)

    def from_store() -> Tensor:
        return visible(store.batch([one.name for one in media], frames))

    def decoded() -> Tensor:
        clips = [decoder.decode(*clip) for clip in zip(media, frames, strict=True)]
        return visible(patchify(torch.stack(clips), CFG.patch_size))

    return {"ours, frame store": from_store, "decoded, PyAV": decoded}


def build(media: list[Media], name: str) -> Path:
    path = Path(folder().name) / name
    build_store(media, path, CFG.image_size, CFG.patch_size, "pyav", workers=1)
    return path


def stores(codec: str) -> dict[str, Callable[[], Any]]:
    """Every frame decoded and resized; ours with patches, checksums and a durable file."""
    media, decoder = videos(codec), make_decoder("pyav", CFG.image_size)

    def whole() -> None:
        with tempfile.TemporaryDirectory(dir=folder().name) as fresh:
            build(media, f"{Path(fresh).name}/store")

    return {
        "ours, whole store": whole,
        "bare decode and resize": lambda: [decoder.decode(one) for one in media],
    }


def imports() -> dict[str, Callable[[], Any]]:
    def started(code: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    return {
        "ours": started("import ivcl_fast"),
        "ours, the train command": started("import ivcl_fast.train"),
        "torch alone": started("import torch"),
    }


def same(contestants: dict[str, Callable[[], Tensor]]) -> None:
    first, *others = (run() for run in contestants.values())
    assert all(torch.equal(first, other) for other in others)


RACES = [
    Race(
        name=f"visible patches of {CLIPS} clips, {SIZE} Motion-JPEG",
        names=("ours, frame store", "decoded, PyAV"),
        build=batches, check=same,
        bytes=CLIPS * CFG.num_frames * 2 * CFG.num_keep * CFG.patch_dim,
        shape=f"{PRESET}, {CLIPS} clips", dtype="uint8",
    ),
    *(
        Race(
            name=f"store of {VIDEOS * 301} frames, {SIZE} {title}",
            names=("ours, whole store", "bare decode and resize"),
            build=functools.partial(stores, codec), shape=f"{VIDEOS * 301} frames", dtype="uint8",
        )
        for codec, title in (("mjpeg", "Motion-JPEG"), ("vp9", "VP9"))
    ),
    Race(
        name="import", names=("ours", "ours, the train command", "torch alone"), build=imports,
        dtype="", rounds=5, seconds=20,
    ),
]  # fmt: skip


@pytest.mark.skipif(DEVICE.type == "cuda", reason="benchmarks.gpu times the loader of a GPU")
@race_tests(RACES)
def test_feed(race, contestant, replay, run_race):
    run_race(race, contestant, replay)
