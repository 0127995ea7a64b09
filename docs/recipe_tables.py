"""The tables of the recipes and of the presets, as ``python -m ivcl_fast.info --plan`` predicts.

``python -m docs.recipe_tables`` replaces what stands between these markers and ``<!-- end -->``:

``<!-- plan: FLAGS -->``
    memory and speed of each preset in bfloat16, with these flags of ``train``;
``<!-- store: VIDEOS FRAMES CODEC -->``
    disk and time that a frame store takes; CODEC is a key of :data:`RATES`, or other;
``<!-- presets -->``
    the sizes of each preset.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

from docs.markers import write_anew
from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.models.reference import IVCL
from ivcl_fast.report.plan import CARDS, plan_stages
from ivcl_fast.report.tables import Table
from ivcl_fast.training.arguments import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "docs" / "guide" / "command_line.md",
    *sorted((ROOT / "docs" / "recipes").glob("*.md")),
]
RATES = {"motion-jpeg": 5580, "vp9": 1835}
"""Frames per second that one core decodes and stores at 64 pixels; see docs/performance.md."""
CORES = 1, 8
PLAN_HEADER = [
    "preset", "stage", "fixed, GB", "MB per clip", "clips that fit 24 GB", "80 GB",
    "GFLOP per clip", "hours per million clips, RTX 4090", "H100",
]  # fmt: skip


def plan(flags: str) -> list[str]:
    """Return the table of all presets."""
    rows = [row for preset in PRESETS for row in plan_rows(preset, flags)]
    return Table(PLAN_HEADER, rows).markdown()


@functools.cache
def plan_rows(preset: str, flags: str) -> list[list[str]]:
    """Return the rows of a preset: pretraining and finetuning."""
    config = parse(["--preset", preset, "--amp", "bf16", *flags.split()])
    rows = []
    for stage in plan_stages(config):
        m = stage.memory
        fixed = (m.weights + m.gradients + m.optimizer + m.casts) / 1e9
        hours = (f"{1e6 / stage.clips_per_second(card) / 3600:.2g}" for card in CARDS)
        most = (f"{stage.most_clips[card]:,}" for card in CARDS)
        per_clip = f"{stage.activations_per_clip / 1e6:,.0f}"
        gflop = f"{stage.flops / 1e9:,.0f}"
        rows.append([preset, stage.stage, f"{fixed:.2f}", per_clip, *most, gflop, *hours])
    return rows


def presets() -> list[str]:
    """Return the table of the presets' sizes, with the parameters of the pretraining model."""
    header = [
        "preset", "pixels", "patch", "slots", "encoder, temporal", "decoder", "heads", "parameters",
    ]  # fmt: skip
    rows = []
    for preset in PRESETS:
        cfg = IVCLConfig.preset(preset)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in IVCL(cfg).parameters())
        widths = (
            f"{cfg.depth} and {cfg.temporal_depth} blocks of width {cfg.embed_dim}",
            f"{cfg.decoder_depth} of {cfg.decoder_dim}",
        )
        size = [str(n) for n in (cfg.image_size, cfg.patch_size, cfg.num_slots)]
        heads = f"{cfg.num_heads}, {cfg.decoder_heads}"
        rows.append([f"`{preset}`", *size, *widths, heads, f"{parameters / 1e6:,.1f} M"])
    return Table(header, rows).markdown()


def store(words: str) -> list[str]:
    """Return the table of a frame store's size at 64 and at 224 pixels, and its time at 64."""
    videos, frames, codec = words.split()
    total = int(videos) * int(frames)
    sizes = (f"{3 * size**2 * total / 1e9:,.1f}" for size in (64, 224))
    header = ["frames", "GB at 64 pixels", "GB at 224 pixels"]
    row = [f"{total:,}", *sizes]
    if codec in RATES:
        header += [f"minutes at 64 pixels, {n} core{'s' * (n > 1)}" for n in CORES]
        row += [f"{total / RATES[codec] / n / 60:,.1f}" for n in CORES]
    return Table(header, [row]).markdown()


KINDS = {"plan": plan, "store": store, "presets": presets}

if __name__ == "__main__":
    argparse.ArgumentParser("python -m docs.recipe_tables", description=__doc__).parse_args()
    write_anew(PAGES, KINDS)
