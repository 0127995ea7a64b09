"""Whether the slots of a run's models have collapsed: a section of its page, and a warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ivcl_fast.analysis.attention_maps import slot_attention, slot_collapse
from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Model
from ivcl_fast.report.page import Section
from ivcl_fast.report.tables import Table

MEASURED_CLIPS = 32
"""Number of clips used to measure slot collapse."""
COLLAPSED = 0.9
"""Overlap of slots above which they count as collapsed."""
MEANING = (
    "they attend to the same patches, so their pictures show no objects. "
    "More varied clips and longer training help."
)


def measure_collapse(
    run: FinishedRun, models: Mapping[str, Model], clips: Sequence[DecodedClip] = ()
) -> tuple[Section, str]:
    """Measure how similar the slots of each model are, and of one with random weights.

    ``clips``: by default clips of the evaluation split. Returns the section, and a sentence about
    the collapsed models, which is empty if there are none.
    """
    clips = clips or list(ClipReader(run).mixed(MEASURED_CLIPS))
    rows, collapsed = list[list[str]](), list[str]()
    for name, model in {"untrained": run.untrained(), **models}.items():
        maps = [slot_attention(model, clip.frames[None]).cpu() for clip in clips]
        scores = slot_collapse(torch.cat(maps))
        rows.append([name, *(str(scores.get(measure, "")) for measure in ("overlap", "entropy"))])
        if name in models and "overlap" in scores and scores["overlap"].value > COLLAPSED:
            collapsed.append(f"{name}: overlap {scores['overlap'].value:.2f}")
    warning = ""
    if collapsed:
        warning = f"The slots have collapsed ({', '.join(collapsed)} of 1): {MEANING}"
    unit = "clip" if len(clips) == 1 else "clips"
    about = (
        f"{warning} Measured on {len(clips)} {unit}. "
        "Overlap: 0 where the slots of a frame attend to different patches, 1 where all attend to "
        "the same (collapse). Entropy: 0 where a slot attends to one patch, 1 where it attends to "
        "all patches equally. Maps with an entropy near 1 overlap because they are all uniform."
    )
    table = Table(["model", "overlap of the slots", "entropy of a slot's map"], rows)
    return Section("Have the slots collapsed?", about.lstrip(), table), warning
