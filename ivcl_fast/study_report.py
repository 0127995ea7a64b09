"""What came of a study: mean and spread over seeds, as a table, a figure and plain numbers."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .files import write_json, write_text
from .report import METRIC_NAMES, SCORES, markdown
from .studies import Study

RESULTS = "results.json"

Results = dict[str, dict[str, dict[str, list[float]]]]
"""Variant, group of clips, metric: a value per seed."""


def read(folders: Mapping[str, Sequence[Path]]) -> tuple[Results, dict[str, dict[str, Any]]]:
    """Scores of every run by variant (baselines without memory by their own names), and chance."""
    results: Results = {}
    chance: dict[str, dict[str, Any]] = {}
    for label, runs in folders.items():
        for run in runs:
            rows = json.loads((run / SCORES).read_text())
            for i, (title, groups) in enumerate(rows.items()):
                name = label if i == 0 else title
                for group, scores in groups.items():
                    for metric, score in scores.items():
                        values = results.setdefault(name, {}).setdefault(group, {})
                        values.setdefault(metric, []).append(score["value"])
                        if i == 0:
                            chance.setdefault(metric, score)
    return results, chance


def show(values: Sequence[float], percent: bool) -> str:
    """Mean, and standard deviation over seeds."""
    factor, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        mean += f" ± {factor * statistics.stdev(values):.{digits}f}"
    return mean + unit


def table(varied: str, results: Results, chance: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown rows: a variant and group of clips each."""
    metrics = list(chance)
    lines = [markdown([varied, "clips", *(METRIC_NAMES[m] for m in metrics)])]
    lines.append("|" + "---|" * (2 + len(metrics)))
    for name, groups in results.items():
        for group, scores in groups.items():
            cells = [show(scores[m], chance[m]["percent"]) if m in scores else "" for m in metrics]
            lines.append(markdown([name, group, *cells]))
    cells = [show([chance[m]["chance"]], chance[m]["percent"]) for m in metrics]
    return [*lines, markdown(["chance", "all", *cells])]


def write(
    folder: Path,
    name: str,
    study: Study,
    folders: Mapping[str, Sequence[Path]],
    flags: Sequence[str],
) -> None:
    """``study.md``, ``study.png`` and ``results.json`` in the study's folder."""
    results, chance = read(folders)
    seeds = len(next(iter(folders.values())))
    write_json(folder / RESULTS, {"study": name, "flags": list(flags), "values": results})
    curves = {label: curve(runs, next(iter(chance))) for label, runs in folders.items()}
    draw(folder / "study.png", study, results, chance, curves)
    command = " ".join(["python -m ivcl_fast.sweep", name, *flags, f"--seeds {seeds}"])
    lines = [
        f"# {name}",
        "",
        f"{study.question} One pretraining each, {seeds} seeds of finetuning: mean ± standard "
        "deviation over the seeds, on the clips that the data set reports on.",
        "",
        *table(study.varied, results, chance),
        "",
        "![study](study.png)",
        "",
        f"`{command}`; torch {torch.__version__}, {platform.machine()}. Values of every seed: "
        f"[{RESULTS}]({RESULTS}).",
        "",
    ]
    if "--quick" in flags:
        lines[2] += " A `--quick` study: it shows that everything runs, the figures mean nothing."
    write_text(folder / "study.md", "\n".join(lines))
    print("\n".join(lines[4:-5]))


def curve(runs: Sequence[Path], metric: str) -> dict[int, list[float]]:
    """Clips seen in finetuning to the metric on validation clips, a value per seed."""
    points: dict[int, list[float]] = {}
    for run in runs:
        for line in (run / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["stage"] == "finetune" and f"val_{metric}" in record:
                points.setdefault(record["clips"], []).append(record[f"val_{metric}"])
    return points


def draw(
    path: Path,
    study: Study,
    results: Results,
    chance: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Mapping[int, Sequence[float]]],
) -> None:
    """The first metric: by variant and group, with standard deviations, and while learning."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metric = next(iter(chance))
    percent = chance[metric]["percent"]
    factor = 100 if percent else 1
    unit = METRIC_NAMES[metric] + (" (%)" if percent else "")
    names = list(results)
    groups = list(dict.fromkeys(g for by_group in results.values() for g in by_group))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[3, 2])
    width = 0.8 / len(groups)
    for i, group in enumerate(groups):
        at, means, spreads = [], [], []
        for position, name in enumerate(names):
            values = results[name].get(group, {}).get(metric)
            if values:
                at.append(position + (i - (len(groups) - 1) / 2) * width)
                means.append(factor * statistics.fmean(values))
                spreads.append(factor * statistics.stdev(values) if len(values) > 1 else 0.0)
        left.bar(at, means, width, yerr=spreads, capsize=2, label=f"{group} clips")
    left.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    left.set(ylabel=unit, xlabel=study.varied)
    for label, points in curves.items():
        clips = sorted(points)
        right.plot(
            clips, [factor * statistics.fmean(points[c]) for c in clips], marker=".", label=label
        )
    right.set(xlabel="labelled clips seen in finetuning", ylabel=f"{unit}, all clips")
    for axes in (left, right):
        axes.axhline(factor * chance[metric]["chance"], color="gray", ls="--", lw=1, label="chance")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(study.question, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
