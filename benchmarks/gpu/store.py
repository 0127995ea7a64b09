"""Training from a store against training on one batch that is there already."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.part import Rows, Sizes
from benchmarks.race import DEVICE
from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.loader import Batch, StoreLoader
from ivcl_fast.data.store.frame_store import BAD_FILES, INDEX, VERSION, FrameStore, write_meta
from ivcl_fast.training import step_graph
from ivcl_fast.training.loop import Schedule, Stage
from ivcl_fast.training.seeds import clip_seeds

VIDEOS, FRAMES = 128, 100


class Notes:
    """Stands for the run's log: keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def rewind(self, stage: str, step: int) -> None:
        pass

    def write(self, stage: str, step: int, clips: int, **values: float) -> None:
        self.records.append(values)


class Unsaved(Stage):
    """A stage without checkpoints."""

    def _save(self, optimizers: Any, done: int) -> None:
        self._settle(done)


class Same:
    """One batch, again and again."""

    wait_seconds = 0.0

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for _ in range(start_batch, self.count):
            yield self.batch


def store(rows: Rows, sizes: Sizes) -> None:
    """The trainer's own loop, with the CUDA graph where there can be one."""
    cfg, clips = sizes.step["base64"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_store(path / "store", cfg)
        shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
        batch = Batch(
            torch.randint(256, shape, dtype=torch.uint8, device=DEVICE),
            torch.zeros(clips, dtype=torch.int64, device=DEVICE),
            torch.arange(clips, device=DEVICE),
        )
        places = ("gpu", "ram", "disk") if DEVICE.type == "cuda" else ("ram", "disk")
        loaders: dict[str, Any] = {
            "synthetic tensors": lambda: Same(batch, sizes.store_steps),
            **{
                f"store, {place}": lambda place=place: from_store(
                    path / "store", place, cfg, clips, sizes.store_steps
                )
                for place in places
            },
            "synthetic tensors, again": lambda: Same(batch, sizes.store_steps),
        }
        for name, make in loaders.items():
            with rows.row(name=name, clips=clips) as row:
                row |= train(make(), cfg, clips, sizes.store_steps)


def train(loader: Any, cfg: IVCLConfig, clips: int, steps: int) -> dict[str, float]:
    """Median speed of the records, and the share of time spent waiting for data."""
    notes = Notes()
    Unsaved(
        name="pretrain", model=IVCL(cfg).to(DEVICE), loader=loader,
        loss=lambda model, part, step: model(
            part.rows, seed=clip_seeds(0, step, part.clip_ids)
        ).loss,
        schedule=Schedule(steps * clips, batch_size=clips),
        folder=Path(tempfile.gettempdir()) / "none", metrics=notes, device=DEVICE,
        amp=True, cuda_graph=step_graph.unsupported_reason(DEVICE) is None,
        log_every=max(1, steps // 8),
        save_every=steps,
    ).run()  # fmt: skip
    settled = notes.records[2:]  # the first two warm up and record the graph
    return {
        "clips_per_second": statistics.median(r["clips_per_second"] for r in settled),
        "data_wait": statistics.median(r["data_wait"] for r in settled),
    }


def from_store(path: Path, place: Any, cfg: IVCLConfig, clips: int, steps: int) -> StoreLoader:
    """Random clips of the store's videos, all steps in one epoch."""
    made = FrameStore(path, place, device=DEVICE)
    wanted = [Clip(f"clip-{i}", made.names[i % VIDEOS], 0) for i in range(clips * steps)]
    return StoreLoader(
        made, wanted, clips, cfg.num_frames, num_classes=1, multi_label=False, jitter=True,
        shuffle=True, drop_last=True,
    )  # fmt: skip


def write_store(path: Path, cfg: IVCLConfig) -> None:
    """A store of random frames, in the true format."""
    path.mkdir()
    noise = np.random.default_rng(0)
    frames = noise.integers(
        256, size=(VIDEOS * FRAMES, cfg.num_patches, cfg.patch_dim), dtype=np.uint8
    )
    index = {f"video-{i}": [0, i * FRAMES, FRAMES] for i in range(VIDEOS)}
    contents = {
        INDEX: json.dumps(index).encode(), BAD_FILES: b"{}", "shard-00000.u8": frames.tobytes(),
    }  # fmt: skip
    for name, content in contents.items():
        (path / name).write_bytes(content)
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    sizes = {"image_size": cfg.image_size, "patch_size": cfg.patch_size}
    write_meta(path, {"version": VERSION, "decoder": "pyav", **sizes, "files": files})
