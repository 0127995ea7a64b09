"""The pages ``report.html``: scores, curves, and a gallery of clips that play.

A page is one file. It loads nothing, so it opens from a disk and can be sent to others.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

import ivcl_fast
from ivcl_fast.__main__ import COMMANDS
from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.config import IVCLConfig
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import Evaluation, Result
from ivcl_fast.files import write_text
from ivcl_fast.report.tables import Table
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.settings import TrainConfig, load_settings

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
SECONDS, MOST_BYTES = 15.0, 7_000_000
"""Limits of the gallery: seconds after its first clip, and bytes of pictures."""
POINTS = 400
"""Largest number of points of a curve."""
MOST_CLASSES = 30
"""Largest number of classes in a confusion matrix."""
NOT_SHOWN = {"out", "name", "resume", "overwrite", "data_dir", "preset"}
"""Settings that the page does not list: the run's location, and those shown elsewhere."""
PANELS = {
    "loss": "Loss",
    "val_frame_map": "Labels of frames in pretraining, mAP, %",
    "val_top1": "Validation top-1, %",
    "val_top1_visible": "Validation top-1, snitch visible at the end, %",
    "val_top1_hidden": "Validation top-1, snitch hidden at the end, %",
    "val_class_mean": "Validation accuracy, mean of the classes, %",
    "val_query": "Validation accuracy of queries, %",
    "val_problem": "Validation accuracy of problems, %",
    "val_map": "Validation mAP, %",
    "val_l1": "Validation L1 (cells)",
    "val_distance": "Validation distance",
    "lr": "Highest learning rate",
    "clips_per_second": "Clips per second",
}
"""Titles of panels by name of the value in ``metrics.jsonl``."""


class Section(NamedTuple):
    """A table under a title, with a note."""

    title: str
    note: str
    table: Table


def write_page(
    path: Path,
    runs: Sequence[FinishedRun],
    clips: Iterable[dict[str, Any]] = (),
    sections: Sequence[Section] = (),
    results: Sequence[Result] = (),
    evaluation: Evaluation | None = None,
    data: str | None = None,
    live: bool = False,
) -> None:
    """Write the page of a run, or of two runs on the same clips.

    Args:
        clips: results of :func:`~ivcl_fast.report.clips.describe_clip`; with two runs, each has
            that of the second run as ``other``. If no clip can be decoded, the page shows the
            reason instead of the gallery.
        results: a run's table, from which the curves take their chance levels.
        evaluation: the answers, for the overview of mistakes.
        data: a description of the clips; by default the run's data source.
        live: more clips follow, so the page plays, and loads itself again after the last one.
    """
    shown, note = gallery(clips)
    run, titles = runs[0], run_names([run.folder for run in runs])
    chance = {}
    if results:
        chance = {f"val_{name}": s.chance for name, s in results[0].scores["all"].items()}
    records = [
        record | {"stage": f"{title} {record['stage']}" if len(runs) > 1 else record["stage"]}
        for title, one in zip(titles, runs, strict=True)
        if one.model is None
        for record in MetricsLog(one.folder).read()
    ]
    settings = [changed_settings(run) for run in runs]
    labelled = any(clip["label"] is not None for clip in shown)
    render(
        path,
        title=" and ".join(titles),
        about=[run.describe(data) for run in runs],
        quick=any(run.config.quick for run in runs),
        runs=titles,
        sections=sections,
        settings={name: [of.get(name, "") for of in settings] for of in settings for name in of},
        device=f"{run.device}, {platform.machine()}",
        note=note,
        clips=shown,
        classes={"": "all"} | dict(enumerate(run.classes.names)) if labelled else {},
        curves=describe_curves(records, chance),
        confusion=describe_confusion(run, evaluation),
        evaluated=len(evaluation.clips) if evaluation else 0,
        live=live,
    )


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of runs' folders, or their paths if names are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [*map(str, folders)]


def write_study(
    path: Path,
    about: Sequence[str],
    sections: Sequence[Section],
    folders: Mapping[str, Sequence[Path]],
) -> None:
    """Write the page of a study: tables, curves of each variant's first run, and links to all runs.

    ``folders``: of the runs, by variant.
    """
    records = [
        record | {"stage": label}
        for label, runs in folders.items()
        for record in MetricsLog(runs[0]).read()
        if record["stage"] == "finetune"
    ]
    links = {
        f"{label}, seed {seed}": Path(os.path.relpath(run / PAGE, path.parent)).as_posix()
        for label, runs in folders.items()
        for seed, run in enumerate(runs)
        if (run / PAGE).is_file()
    }
    title = path.parent.resolve().name
    curves = describe_curves(records, {})
    render(path, title=title, about=about, sections=sections, curves=curves, links=links)


def render(path: Path, **parts: Any) -> None:
    """Write a page with these parts of the template."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    versions = {
        "ivcl_fast": ivcl_fast.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "device": parts.get("device", platform.machine()),
    }
    data = {name: parts.get(name) for name in ("curves", "confusion", "live")}
    text = environment.get_template("report.html").render(
        style=Markup((TEMPLATES / "report.css").read_text()),
        script=Markup((TEMPLATES / "report.js").read_text()),
        versions=versions,
        command=command_line(),
        data=finite(data | {"clips": parts.get("clips", [])}),
        **parts,
    )
    write_text(path, text)


def gallery(clips: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the clips that fit into the page, and an error if none can be shown."""
    shown, size, start = list[dict[str, Any]](), 0, 0.0
    try:
        for clip in clips:
            shown.append(clip)
            start = start or time.monotonic()
            both = clip["layers"] + clip.get("other", {"layers": []})["layers"]
            size += sum(len(layer["src"]) for layer in both)
            if size > MOST_BYTES or time.monotonic() - start > SECONDS:
                break
    except UserError as error:
        return shown, str(error)
    return shown, ""


def describe_curves(
    records: Sequence[Mapping[str, Any]], chance: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the curves of ``metrics.jsonl``, a panel for each value, a line for each stage."""
    panels = []
    for name, title in PANELS.items():
        lines: dict[str, list[list[float]]] = {}
        factor = 100 if title.endswith("%") else 1
        for record in records:
            if name in record:
                points = lines.setdefault(record["stage"], [])
                points.append([record["clips"], factor * record[name]])
        thinned = {stage: points[:: -(-len(points) // POINTS)] for stage, points in lines.items()}
        if lines:
            level = factor * chance[name] if name in chance else None
            panels.append({"title": title, "chance": level, "lines": thinned})
    return panels


def describe_confusion(run: FinishedRun, evaluation: Evaluation | None) -> dict[str, Any] | None:
    """Return the confusion matrix, or None if clips do not have one class each.

    For localisation, the page shows it on the floor, otherwise for the classes with most mistakes.
    """
    if evaluation is None or run.classes.target != "class":
        return None
    names = run.classes.names
    pairs = Counter((clip["label"], clip["answer"]) for clip in evaluation.by_clip())
    mistakes = np.zeros(len(names))
    for (label, answer), clips in pairs.items():
        mistakes[[label, answer]] += clips * (label != answer)
    order = np.argsort(-mistakes, kind="stable")[:MOST_CLASSES]
    return {
        "n": round(len(names) ** 0.5) if run.localizes else None,
        "names": names,
        "classes": sorted(order.tolist()),
        "pairs": [[*pair, clips] for pair, clips in sorted(pairs.items())],
    }


def changed_settings(run: FinishedRun) -> dict[str, str]:
    """Return the run's settings that differ from the defaults of its preset.

    For a model without its run, these are the model's settings and its record of the training.
    """
    default = TrainConfig(model=IVCLConfig.preset(run.config.preset)).flat()
    if run.model is None:
        kept, record = load_settings(run.folder).flat(), {}
    else:
        kept, record = vars(run.config.model), run.record(str(run.chosen))
    differing = {name: of for name, of in kept.items() if of != default[name]} | record
    shown = differing.keys() - NOT_SHOWN
    return {k: str(v) for k, v in differing.items() if k in shown and not isinstance(v, dict)}


def command_line() -> str:
    """Return the ``ivcl_fast`` command that this process runs; empty in a notebook."""
    program, *arguments = sys.argv
    if Path(program).stem not in COMMANDS:
        return ""
    return shlex.join(["python", "-m", f"ivcl_fast.{Path(program).stem}", *arguments])


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by None, also inside lists and dicts."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
