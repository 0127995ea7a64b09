"""``python -m benchmarks.gpu NAME FILE``: one part of the check of a card.

``--rehearse`` does the same on a CPU with tiny sizes, to show that it runs; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch

from benchmarks.gpu.part import CARD, REHEARSAL, Rows, Sizes, Skip

PARTS = {
    "machine": "machine", "compile": "steps", "kernels": "kernels", "attention": "kernels",
    "base64": "steps", "base224": "steps", "batches": "steps", "store": "store",
    "decoder": "decoder", "train": "decoder",
}  # fmt: skip
"""Name of every part, and the module that has a function of that name."""


def run(name: str, rows: Rows, sizes: Sizes) -> None:
    """Measure; a part that cannot run here says why in its only row."""
    module = importlib.import_module(f"benchmarks.gpu.{PARTS[name]}")
    try:
        getattr(module, name)(rows, sizes)
    except Skip as reason:
        rows.add(skipped=str(reason))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")  # as training
    run(options.name, Rows(options.file), REHEARSAL if options.rehearse else CARD)


if __name__ == "__main__":
    main()
