"""Benchmarks of the data: batches from a frame store, building one, training from one, the import.

Each needs PyAV except training from a store, whose frames are random numbers.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.benchmark import Benchmark, Setup, one_call
from benchmarks.ops import CLIPS, PRESET, draw_ids
from benchmarks.results import Skip
from benchmarks.timing import DEVICE
from ivcl_fast import IVCLConfig, reference
from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.data.loader import StoreLoader
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.source import State
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify

CFG = IVCLConfig.preset(PRESET)
VIDEOS = 3
FRAMES = {"full": 301, "embedded": 38}
"""Of a synthetic CATER video of each size."""


def require(*packages: str) -> None:
    """Raise :class:`Skip` if a package cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # a library that does not fit the driver may raise anything
            raise Skip(f"{package} cannot be imported ({error})") from None


def require_decoder(name: str) -> None:
    """Raise :class:`Skip` if a decoder cannot run here."""
    require("av")
    from ivcl_fast.data.decode.decoder import resolve_decoder

    if name == "dali":
        try:
            resolve_decoder("dali")
        except UserError as error:
            raise Skip(str(error)) from None
        require("nvidia.dali")


# --- Videos and stores ----------------------------------------------------------------------------


FOLDER = "IVCL_FAST_BENCHMARK_FOLDER"
"""Name of the environment variable with a folder for videos that several processes use."""


def folder() -> Path:
    """Return a folder for videos and stores; by default one that is deleted with the process."""
    return Path(os.environ.get(FOLDER) or _temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ivcl-bench-")


@functools.cache
def videos(
    codec: str, count: int = VIDEOS, size: Any = "full", workers: int | None = 1
) -> list[Media]:
    """Write synthetic CATER videos; in full size 320x240 with 301 frames each."""
    require("av")
    from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater

    data = folder() / f"cater-{codec}-{count}-{size}"
    write_cater(data, SyntheticCater(size, train=count, val=0), workers)
    files = sorted((data / "videos").iterdir())
    if codec == "vp9":
        files = [as_vp9(file, file.with_suffix(".webm")) for file in files]
    return [Media(file.stem, (file,)) for file in files]


def as_vp9(source: Path, target: Path) -> Path:
    """Encode a video of 320x240 anew."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream: Any = new.add_stream(
            "libvpx-vp9", rate=24, options={"deadline": "realtime", "cpu-used": "8"}
        )
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame.reformat(format="yuv420p")))
        new.mux(stream.encode(None))
    return target


def build(
    path: Path, media: list[Media], decoder: Any, cfg: IVCLConfig, workers: int | None = 1
) -> FrameStore:
    """Build a store; ``workers=None`` is one per CPU."""
    from ivcl_fast.data.store.build import build_store

    return build_store(media, path, cfg.image_size, cfg.patch_size, decoder, workers=workers)


def build_once(*arguments: Any) -> None:
    """Build a store as :func:`build` does, and delete it."""
    with tempfile.TemporaryDirectory(dir=folder()) as fresh:
        build(Path(fresh) / "store", *arguments)


def batches() -> Setup:
    """The visible patches of a pretraining batch, from a store or by decoding its frames."""
    files = videos("mjpeg")
    from ivcl_fast.data.decode.decoder import make_decoder

    media = [files[i % VIDEOS] for i in range(CLIPS)]
    store = build(folder() / "batches", files, "pyav", CFG)
    decoder = make_decoder("pyav", CFG.image_size)
    frames = [frame_ids(store.num_frames(one.name), CFG.num_frames, None) for one in media]
    keep = draw_ids(CFG, CLIPS * CFG.num_frames)[0].cpu()

    def visible(rows: Tensor) -> Tensor:
        return reference.take_rows(rows.flatten(0, 1), keep)

    def from_store() -> Tensor:
        return visible(store.batch([one.name for one in media], frames))

    def decoded() -> Tensor:
        clips = [decoder.decode(*clip) for clip in zip(media, frames, strict=True)]
        return visible(patchify(torch.stack(clips), CFG.patch_size))

    calls = {"ours, frame store": from_store, "decoded, PyAV": decoded}
    return Setup({name: one_call(call) for name, call in calls.items()}, decoded())


def builds(codec: str) -> Setup:
    """A store against decoding and resizing alone; it adds patches, checksums and a safe file."""
    media = videos(codec)
    from ivcl_fast.data.decode.decoder import make_decoder

    decoder = make_decoder("pyav", CFG.image_size)
    return Setup(
        {
            "ours, whole store": lambda: [lambda: build_once(media, "pyav", CFG)],
            "bare decode and resize": lambda: [lambda: [decoder.decode(one) for one in media]],
        }
    )


def imports() -> Setup:
    """The time that a fresh interpreter takes."""
    modules = {
        "ours": "ivcl_fast", "ours, the train command": "ivcl_fast.train", "torch alone": "torch",
    }  # fmt: skip

    def start(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    return Setup({name: one_call(partial(start, module)) for name, module in modules.items()})


BENCHMARKS = [
    Benchmark(
        name=f"visible patches of {CLIPS} clips, 320x240 Motion-JPEG", setup=batches, tolerance=0,
        implementations=("ours, frame store", "decoded, PyAV"),
        facts={"bytes": CLIPS * CFG.num_frames * 2 * CFG.num_keep * CFG.patch_dim, "count": CLIPS,
               "unit": "clips"},
    ),
    *(
        Benchmark(
            name=f"store of {VIDEOS * 301} frames, 320x240 {title}", setup=partial(builds, codec),
            implementations=("ours, whole store", "bare decode and resize"),
            facts={"count": VIDEOS * 301, "unit": "frames"},
        )
        for codec, title in (("mjpeg", "Motion-JPEG"), ("vp9", "VP9"))
    ),
    Benchmark(
        name="import", implementations=("ours", "ours, the train command", "torch alone"),
        setup=imports, rounds=5, max_seconds=20,
    ),
]  # fmt: skip


# --- Training from a store ------------------------------------------------------------------------

STORED_VIDEOS, STORED_FRAMES = 128, 100


def store_loader(path: Path, place: Any, cfg: IVCLConfig, clips: int, steps: int) -> StoreLoader:
    """Random clips of a store's videos, enough for all steps in one epoch."""
    store = FrameStore(path, place, device=DEVICE)
    wanted = [
        Clip(f"clip-{i}", store.names[i % STORED_VIDEOS], 0) for i in range(clips * (steps + 1))
    ]
    return StoreLoader(
        store, wanted, clips, cfg.num_frames, num_classes=1, multi_label=False, jitter=True,
        shuffle=True, drop_last=True,
    )  # fmt: skip


def stream_loader(media: list[Media], decoder: Any, cfg: IVCLConfig, clips: int, steps: int) -> Any:
    """Random clips of videos, decoded as they are needed: what ``--loader stream`` runs."""
    require_decoder(decoder)
    from ivcl_fast.data.decode.decoder import default_workers, resolve_decoder
    from ivcl_fast.data.stream import StreamLoader
    from ivcl_fast.data.stream_index import saved_index
    from ivcl_fast.data.workers import usable_cpus

    index = saved_index(media, folder() / f"index-{len(media)}", usable_cpus())
    wanted = [Clip(f"clip-{i}", media[i % len(media)].name, 0) for i in range(clips * (steps + 1))]
    chosen = resolve_decoder(decoder)
    return StreamLoader(
        wanted, clips, cfg.num_frames, media=media, index=index, decoder=chosen,
        image_size=cfg.image_size, patch_size=cfg.patch_size,
        workers=default_workers(chosen), num_classes=1, multi_label=False, jitter=True,
        shuffle=True, drop_last=True,
    )  # fmt: skip


def read_all(loader: Any) -> None:
    """Take every batch of an epoch, and nothing else."""
    for _ in loader.epoch(0):
        pass


class RandomFrames:
    """A source of random frames; see :class:`~ivcl_fast.data.store.source.Source`."""

    decoder = "random"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def only(self, names: Sequence[str]) -> RandomFrames:
        return RandomFrames(names)

    def state(self, name: str) -> State:
        return State(1, 1)

    def frames(self, name: str, image_size: int) -> Iterator[Tensor]:
        yield torch.randint(256, (STORED_FRAMES, 3, image_size, image_size), dtype=torch.uint8)


def write_random_store(path: Path, cfg: IVCLConfig) -> None:
    """Write a store of random frames."""
    from ivcl_fast.data.store.build import build_store

    source = RandomFrames([f"video-{i:03d}" for i in range(STORED_VIDEOS)])
    build_store(source, path, cfg.image_size, cfg.patch_size, workers=1)
