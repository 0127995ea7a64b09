"""What the parts share: how much they measure, and the rows that they write.

Every measurement is appended to a file as a line of JSON the moment it is made, so a crash or a
hang later on takes nothing along.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ivcl_fast import IVCLConfig


class Skip(Exception):
    """Something cannot run here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything is measured."""

    step: dict[str, tuple[IVCLConfig, int]]
    """Training step: part to the model's sizes and clips."""
    batches: tuple[int, ...]
    """Clips of the batch sweep."""
    kernel_clips: int
    attention: tuple[tuple[int, int, int, int], ...]
    """Sequences, tokens, heads and their width."""
    dtype: torch.dtype
    store_steps: int
    seconds: float
    """Of measuring a step, about."""
    repeats: int
    """Of a short kernel."""
    videos: int


def _target(preset: str, **overrides: Any) -> IVCLConfig:
    """The setting that docs/performance.md has targets for."""
    return IVCLConfig.preset(preset, mask_ratio=0.875, num_query_frames=1, **overrides)


CARD = Sizes(
    step={"base64": (_target("base64"), 88), "base224": (_target("base224"), 32)},
    batches=(8, 16, 32, 88, 176, 352, 704),
    kernel_clips=88,
    attention=((2048, 12, 12, 64), (1232, 20, 12, 64), (560, 44, 12, 64), (384, 64, 12, 64),
               (192, 128, 12, 64), (2048, 18, 4, 32)),
    dtype=torch.bfloat16,
    store_steps=160,
    seconds=1.0,
    repeats=20,
    videos=64,
)  # fmt: skip
_TINY = _target("tiny", image_size=16, embed_dim=32, num_heads=2, depth=1, temporal_depth=1,
                decoder_dim=32, decoder_heads=2, decoder_depth=1, num_frames=3)  # fmt: skip
REHEARSAL = Sizes(
    step={"base64": (_TINY, 2), "base224": (_TINY, 2)},
    batches=(1, 2),
    kernel_clips=1,
    attention=((4, 5, 2, 16),),
    dtype=torch.float32,
    store_steps=4,
    seconds=0.01,
    repeats=1,
    videos=2,
)


class Rows:
    """What a part has measured, in a file that grows line by line."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, **row: Any) -> None:
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def row(self, **what: Any) -> Iterator[dict[str, Any]]:
        """A row to fill in. Where that fails the row says why, and the next can be tried."""
        row = dict(what)
        try:
            yield row
        except Skip as reason:
            row["skipped"] = str(reason)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            row["error"] = f"{type(error).__name__}: {lines[0]}"[:300]
        self.add(**row)
