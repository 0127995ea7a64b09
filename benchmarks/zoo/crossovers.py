"""Up to which length fused parts of a ViT are the faster ones: measures, and writes the table.

    python -m benchmarks.zoo.crossovers

Times attention, MLP and block of a ViT-B of timm (training and inference, float32 and bfloat16 by
autocast) against the faster of SDPA and an explicit softmax, on otherwise idle cores, in about ten
minutes. Writes every ratio to ``benchmarks/results/crossovers-MACHINE.json`` and this hardware's
rows of ``ivcl_fast/models/accelerate/crossovers.py``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import Block
from torch import nn

from benchmarks import machine
from benchmarks.results import RESULTS
from benchmarks.timing import DEVICE
from ivcl_fast import accelerate
from ivcl_fast.models.accelerate import crossovers, tune
from ivcl_fast.models.accelerate.crossovers import KINDS
from ivcl_fast.models.accelerate.swap import ALWAYS, REPLACEMENT

WIDTH, HEADS = 768, 12
PARTS = {"attention": "attn", "block": "", "mlp": "mlp", "rms_block": ""}
"""The part of a block that each kind stands for."""
LENGTHS = (17, 50, 128, 197, 257, 400, 577, 785)
DTYPES = (torch.bfloat16, torch.float32)


def rivals(kind: str) -> tuple[list[nn.Module], nn.Module]:
    """A part with SDPA and with an explicit softmax, and the fused one."""
    parts = []
    for explicit in (False, True, None):
        norm = RmsNorm if kind == "rms_block" else nn.LayerNorm
        block = Block(WIDTH, HEADS, qkv_bias=True, norm_layer=norm).to(DEVICE)
        if explicit:
            block.attn.fused_attn = False
        part = block.get_submodule(PARTS[kind])
        if explicit is None:
            accelerate(part)
            for module in part.modules():
                if REPLACEMENT in vars(module):
                    module.__dict__[REPLACEMENT] = vars(module)[REPLACEMENT]._replace(limits=ALWAYS)
        parts.append(part)
    *own, fused = parts
    return own, fused


def measure() -> dict[str, Any]:
    """Ratios by kind, dtype, use and length."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        own, fused = rivals(kind)
        for dtype in DTYPES:
            for training in (True, False):
                ratios = tune.speedups(
                    own, fused, lambda x: ((x,), {}), WIDTH, dtype, training, LENGTHS
                )
                name = str(dtype).removeprefix("torch.")
                use = "training" if training else "inference"
                found.setdefault(kind, {}).setdefault(name, {})[use] = ratios
                print(kind, name, use, {n: round(r, 2) for n, r in ratios.items()}, flush=True)
    return found


def limits(found: dict[str, Any], hardware: str) -> dict[tuple[str, str, str], tuple[int, int]]:
    """The rows of the table that the ratios of one hardware give."""

    def longest(ratios: dict[int, float]) -> int:
        last = tune.longest_gain(ratios)
        return crossovers.ANY if last == max(ratios) else last

    return {
        (hardware, kind, dtype): (longest(uses["training"]), longest(uses["inference"]))
        for kind, dtypes in found.items()
        for dtype, uses in dtypes.items()
    }


def source(table: dict[tuple[str, str, str], tuple[int, int]]) -> str:
    """The table as it stands in ``crossovers.py``."""

    def show(limit: int) -> str:
        return "ANY" if limit >= crossovers.ANY else str(limit)

    rows = (
        f'    ("{hardware}", "{kind}", "{dtype}"): ({", ".join(map(show, pair))}),\n'
        for (hardware, kind, dtype), pair in sorted(table.items())
    )
    return "".join(rows)


def write_table(file: Path, rows: dict[tuple[str, str, str], tuple[int, int]]) -> None:
    """Replace the rows of the table in ``file``."""
    text = file.read_text()
    pattern = re.compile(r"(^LIMITS: .*?\{\n)(.*?)(^\}\n)", re.DOTALL | re.MULTILINE)
    new = source(crossovers.LIMITS | rows)
    file.write_text(pattern.sub(lambda found: found[1] + new + found[3], text, count=1))


def main() -> None:
    argparse.ArgumentParser("python -m benchmarks.zoo.crossovers", description=__doc__).parse_args()
    hardware = crossovers.hardware(DEVICE.type)
    found = measure()
    name = re.sub(r"[^a-z0-9]+", "-", machine.cpu_name().lower()).strip("-")
    file = RESULTS / f"crossovers-{hardware}-{name}.json"
    file.write_text(json.dumps({"machine": machine.describe(), "ratios": found}, indent=1) + "\n")
    write_table(Path(crossovers.__file__), limits(found, hardware))
    print(f"written: {file}, {crossovers.__file__}")


if __name__ == "__main__":
    main()
