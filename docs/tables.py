"""The generated tables of README.md and of the pages in this folder.

``python -m docs.tables`` replaces what stands between these markers and ``<!-- end -->``:

``<!-- studies -->``
    what each study asks and how many runs it takes, from ``ivcl_fast/studies/definitions.py``;
``<!-- plan: FLAGS -->``
    memory and speed of each preset in bfloat16, with these flags of ``train``;
``<!-- presets -->``
    the sizes of each preset;
``<!-- zoo -->``
    the models in the package.
"""

from __future__ import annotations

import argparse
import functools
import re
from pathlib import Path

import torch

from docs.markers import write_anew
from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.models.reference import IVCL
from ivcl_fast.models.weights import CONFIG, MODEL, PACKAGED, read_config
from ivcl_fast.report.plan import CARDS, plan_stages
from ivcl_fast.report.tables import Table
from ivcl_fast.studies.definitions import STUDIES
from ivcl_fast.studies.runner import plan_jobs
from ivcl_fast.training.arguments import parse

ROOT = Path(__file__).resolve().parent.parent
SHOWN = "top-1, all", "top-1, visible", "top-1, hidden", "query, all", "problem, all"
"""Names of the scores of a packaged model in the table."""


# --- Studies -------------------------------------------------------------------------------------


def studies() -> list[str]:
    """Return the table of all studies."""
    rows = []
    for name, study in STUDIES.items():
        pretrainings, finetunings = plan_jobs(study, Path(name), 1, ())
        labels = "; ".join(dict.fromkeys(variant.label for variant in study.variants))
        counts = [str(len(pretrainings)), str(len(finetunings))]
        rows.append([f"`{name}`", study.question, f"{study.varied}: {labels}", *counts])
    header = ["study", "question", "varies", "pretrainings", "finetunings per seed"]
    return Table(header, rows).markdown()


# --- Recipes and models --------------------------------------------------------------------------


def plan(flags: str) -> list[str]:
    """Return what ``info --plan`` predicts for all presets."""
    header = [
        "preset", "stage", "fixed, GB", "MB per clip", "clips that fit 24 GB", "80 GB",
        "GFLOP per clip", "hours per million clips, RTX 4090", "H100",
    ]  # fmt: skip
    return Table(header, [row for preset in PRESETS for row in plan_rows(preset, flags)]).markdown()


@functools.cache
def plan_rows(preset: str, flags: str) -> list[list[str]]:
    """Return the rows of a preset: pretraining and finetuning."""
    rows = []
    for stage in plan_stages(parse(["--preset", preset, "--amp", "bf16", *flags.split()])):
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


def zoo() -> list[str]:
    """Return the table of all models in the package."""
    rows = []
    for folder in sorted(path for path in PACKAGED.iterdir() if path.is_dir()):
        record = read_config(folder / CONFIG)["training"]
        measured = next((record[key] for key in record if key.startswith("scores on ")), {})
        about = f"{record['stage']}, {record['task']}, {record['data']}, preset {record['preset']}"
        scores = "; ".join(f"{name} {measured[name]}" for name in SHOWN if name in measured)
        size = f"{(folder / MODEL).stat().st_size / 1e6:.1f} MB"
        rows.append([f"`ivcl_fast/{folder.name}`", about, scores, size])
    return Table(["name", "stage, task, data", "scores", "size"], rows).markdown()


KINDS = {
    "studies": studies,
    "plan": plan,
    "presets": presets,
    "zoo": zoo,
}


def pages() -> list[Path]:
    """Return the pages that have such tables. Other pages have ``zoo: ...`` of benchmarks."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    marker = re.compile(rf"^<!-- ({'|'.join(KINDS)})(: .*)? -->$", re.MULTILINE)
    return [
        path
        for path in found
        if any(kind != "zoo" or not words for kind, words in marker.findall(path.read_text()))
    ]


if __name__ == "__main__":
    argparse.ArgumentParser("python -m docs.tables", description=__doc__).parse_args()
    write_anew(pages(), KINDS)
