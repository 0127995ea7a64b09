"""Up to which length fused parts of a ViT are the faster ones: measures, and writes the table.

    python -m benchmarks.zoo.crossovers

Times attention, MLP and block of a ViT-B of timm against their own code: training in float32 and in
bfloat16 by autocast, inference with weights of that type. Attention's own code is the faster of
SDPA and an explicit softmax. Takes about fifteen minutes of otherwise idle cores. Writes every
ratio to ``benchmarks/results/crossovers-MACHINE.json`` and this hardware's rows of
``ivcl_fast/models/accelerate/crossovers.py``.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RmsNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.results import RESULTS
from benchmarks.timing import BF16, DEVICE
from benchmarks.zoo.measure import OURS, OWN, RIVAL, race
from benchmarks.zoo.rivals import in_math, without_fused_attn
from ivcl_fast import accelerate
from ivcl_fast.models.accelerate import crossovers, tune
from ivcl_fast.models.accelerate.crossovers import SEPARATE_ATTENTION
from ivcl_fast.models.accelerate.swap import unswap

WIDTH, HEADS = 768, 12
PARTS = {"attention": "attn", SEPARATE_ATTENTION: "", "mlp": "mlp", "block": "", "rms_block": ""}
"""The part of a block that each kind stands for; what blocks contain comes before them."""
LENGTHS = (17, 50, 128, 197, 257, 400, 577, 785)
TOKENS = 800
"""About as many tokens are in each call, in sequences of one length."""
DTYPES = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if BF16 else {})
"""Not bfloat16 where a call in it takes seconds, because the hardware has none."""
ROUNDS, SECONDS = 31, 6.0
"""Most rounds of a race, and its most seconds."""


class SeparateAttention(nn.Module):
    """Attention with separate projections, as in Hugging Face's models."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


def contenders(kind: str) -> dict[str, nn.Module]:
    """A part that runs fused, and one that runs its own code, with equal weights.

    What they contain is fused in both as the table has it.
    """
    norm = RmsNorm if kind == "rms_block" else nn.LayerNorm
    block = Block(WIDTH, HEADS, qkv_bias=True, norm_layer=norm)
    ours = SeparateAttention() if kind == SEPARATE_ATTENTION else block.get_submodule(PARTS[kind])
    ours = ours.to(DEVICE)
    accelerate(ours)
    own = copy.deepcopy(ours)
    unswap(own)
    sides = {OURS: ours, OWN: own}
    if kind in ("attention", SEPARATE_ATTENTION):
        rival = without_fused_attn if kind == "attention" else in_math
        sides[RIVAL] = rival(copy.deepcopy(own))
    return sides


def speedups(kind: str, dtype: torch.dtype, training: bool) -> dict[int, float]:
    """By length, how many times as fast the fused part is as the best of its own code."""
    sides = contenders(kind)
    if not training:
        sides = {name: part.to(dtype).requires_grad_(False) for name, part in sides.items()}
    found = {}
    for length in LENGTHS:
        x = torch.randn(max(1, TOKENS // length), length, WIDTH, device=DEVICE)
        x = x.requires_grad_() if training else x.to(dtype)
        calls = {
            name: tune.step(part, lambda x: ((x,), {}), x, dtype, training)
            for name, part in sides.items()
        }
        raced = race(calls, SECONDS, ROUNDS)
        gains = {key: statistics.median(raced[key]) for key in ("ours", "rival") if key in raced}
        found[length] = round(gains["ours"] / max(1.0, gains.get("rival", 1.0)), 3)
    return found


def measure(hardware: str) -> dict[str, Any]:
    """Ratios by kind, dtype, use and length; this hardware's rows of the table follow them."""
    rows = [(hardware, kind, name) for kind in PARTS for name in DTYPES]
    crossovers.LIMITS |= dict.fromkeys(rows, (crossovers.ANY, crossovers.ANY))
    found: dict[str, Any] = {}
    for _, kind, name in rows:
        uses: dict[str, dict[int, float]] = {}
        for use in ("training", "inference"):
            uses[use] = speedups(kind, DTYPES[name], use == "training")
            print(kind, name, use, uses[use], flush=True)
        found.setdefault(kind, {})[name] = uses
        crossovers.LIMITS[hardware, kind, name] = (
            longest(uses["training"]),
            longest(uses["inference"]),
        )
    return found


def longest(ratios: dict[int, float]) -> int:
    """The table's limit for ratios by length."""
    last = tune.longest_gain(ratios)
    return crossovers.ANY if last == max(ratios) else last


def write_table(file: Path) -> None:
    """Replace the table in ``file``, which is ``crossovers.py``."""

    def show(limit: int) -> str:
        return "ANY" if limit >= crossovers.ANY else str(limit)

    rows = "".join(
        f'    ("{hardware}", "{kind}", "{dtype}"): ({", ".join(map(show, pair))}),\n'
        for (hardware, kind, dtype), pair in sorted(crossovers.LIMITS.items())
    )
    pattern = re.compile(r"(^LIMITS: .*?\{\n)(.*?)(^\}\n)", re.DOTALL | re.MULTILINE)
    text = pattern.sub(lambda found: found[1] + rows + found[3], file.read_text(), count=1)
    file.write_text(text)


def main() -> None:
    argparse.ArgumentParser("python -m benchmarks.zoo.crossovers", description=__doc__).parse_args()
    hardware = crossovers.hardware(DEVICE.type)
    found = measure(hardware)
    name = re.sub(r"[^a-z0-9]+", "-", machine.cpu_name().lower()).strip("-")
    file = RESULTS / f"crossovers-{hardware}-{name}.json"
    file.write_text(json.dumps({"machine": machine.describe(), "ratios": found}, indent=1) + "\n")
    write_table(Path(crossovers.__file__))
    print(f"written: {file}, {crossovers.__file__}")


if __name__ == "__main__":
    main()
