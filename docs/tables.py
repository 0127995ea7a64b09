"""The generated tables of README.md and of the pages in this folder.

``python -m docs.tables`` replaces what stands between these markers and ``<!-- end -->``:

``<!-- studies -->``
    what each study asks and how many runs it takes, from ``ivcl_fast/studies/definitions.py``;
``<!-- presets -->``
    the sizes of each preset;
``<!-- zoo -->``
    the models in the package.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from docs.markers import write_anew
from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.models.reference import IVCL
from ivcl_fast.models.weights import CONFIG, MODEL, PACKAGED, read_config
from ivcl_fast.studies.definitions import STUDIES
from ivcl_fast.studies.runner import plan_jobs
from ivcl_fast.text import markdown_table

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
    return markdown_table(header, rows)


# --- Recipes and models --------------------------------------------------------------------------


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
    return markdown_table(header, rows)


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
    return markdown_table(["name", "stage, task, data", "scores", "size"], rows)


KINDS = {
    "studies": studies,
    "presets": presets,
    "zoo": zoo,
}


def pages() -> list[Path]:
    """Return the pages that have such tables."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    marker = re.compile(rf"^<!-- ({'|'.join(KINDS)}) -->$", re.MULTILINE)
    return [path for path in found if marker.search(path.read_text())]


if __name__ == "__main__":
    argparse.ArgumentParser("python -m docs.tables", description=__doc__).parse_args()
    write_anew(pages(), KINDS)
