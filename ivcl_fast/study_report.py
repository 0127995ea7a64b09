"""What came of a study: mean and spread over seeds, as a table, a figure and plain numbers."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .files import write_json, write_text
from .metrics import clustered_interval
from .report import CLIPS, METRIC_NAMES, SCORES, markdown
from .settings import load_settings
from .studies import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = "results.json"

Folders = dict[str, dict[str, list[Path]]]
"""Table, variant: a run per seed."""
Results = dict[str, dict[str, dict[str, list[float]]]]
"""Variant, group of clips, metric: a value per seed."""
Chance = dict[str, dict[str, Any]]
"""By metric: a score with its ``chance``, and whether it is in ``percent``."""


def title(run: Path) -> str:
    """The data set and task of a run: variants that share them can be compared."""
    config = load_settings(run)
    return f"{config.task} on {config.data}"


def read(folders: Mapping[str, Sequence[Path]]) -> tuple[Results, Chance]:
    """Scores of every run by variant (baselines without memory by their own names), and chance."""
    results: Results = {}
    chance: Chance = {}
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


def table(varied: str, results: Results, chance: Chance) -> list[str]:
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


Answered = tuple[str, str, str]
"""A clip's name, video and group."""


def right_share(runs: Sequence[Path]) -> dict[Answered, float]:
    """The share of seeds that answer a clip right, of the clips that all have answered.

    Empty for a multi-label task, and for runs that have not kept their answers.
    """
    hits: dict[Answered, list[bool]] = {}
    for run in runs:
        file = run / CLIPS
        for clip in json.loads(file.read_text()) if file.exists() else ():
            if "answer" in clip:
                key = clip["name"], clip["video"], clip.get("group", "all")
                hits.setdefault(key, []).append(clip["answer"] == clip["label"])
    return {key: statistics.fmean(of) for key, of in hits.items() if len(of) == len(runs)}


def differences(varied: str, metric: str, folders: Mapping[str, Sequence[Path]]) -> list[str]:
    """Markdown: how far every variant is from the first, on the clips that both have answered."""
    first, *others = folders
    base = right_share(folders[first])
    rows = []
    for label in others:
        found = right_share(folders[label])
        common = [clip for clip in base if clip in found]
        for group in dict.fromkeys(["all", *(group for _, _, group in common)]):
            clips = [clip for clip in common if group in ("all", clip[2])]
            if not clips:
                continue
            gains = np.array([100 * (found[clip] - base[clip]) for clip in clips])
            low, high = clustered_interval(gains, np.array([video for _, video, _ in clips]))
            rows.append(markdown([label, group, f"{gains.mean():+.1f} [{low:+.1f}, {high:+.1f}]"]))
    if not rows:
        return []
    header = markdown([varied, "clips", METRIC_NAMES[metric]])
    says = (
        f"Difference from *{first}* on the same clips, in points, with 95 % intervals over clips:"
    )
    return ["", says, "", header, "|---|---|---|", *rows]


def write(
    folder: Path, name: str, study: Study, folders: Folders, flags: Sequence[str], seeds: int
) -> None:
    """``study.md``, ``study.png`` and ``results.json`` in the study's folder; prints the tables."""
    scores = {title: read(runs) for title, runs in folders.items()}
    values = {title: results for title, (results, _) in scores.items()}
    write_json(folder / RESULTS, {"study": name, "flags": list(flags), "values": values})
    draw(folder / "study.png", study, folders, scores)
    tables = []
    for title, (results, chance) in scores.items():
        tables += [f"## {title}", "", *table(study.varied, results, chance)]
        tables += [*differences(study.varied, next(iter(chance)), folders[title]), ""]
    command = " ".join(["python -m ivcl_fast.sweep", name, *flags, f"--seeds {seeds}"])
    quick = " A `--quick` study: it shows that everything runs, the figures mean nothing."
    lines = [
        f"# {name}",
        "",
        f"{study.question} One pretraining each, {seeds} seeds of finetuning: mean ± standard "
        "deviation over the seeds, on the clips that the data set reports on."
        + (quick if "--quick" in flags else ""),
        "",
        *tables,
        "![study](study.png)",
        "",
        f"`{command}`; torch {torch.__version__}, {platform.machine()}. Values of every seed: "
        f"[{RESULTS}]({RESULTS}).",
        "",
    ]
    write_text(folder / "study.md", "\n".join(lines))
    print("\n".join(tables))


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
    path: Path, study: Study, folders: Folders, scores: Mapping[str, tuple[Results, Chance]]
) -> None:
    """The first metric of every table, a row each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, rows = plt.subplots(
        len(folders), 2, figsize=(11, 4.2 * len(folders)), width_ratios=[3, 2], squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for (left, right), (title, (results, chance)) in zip(rows, scores.items(), strict=True):
        metric = next(iter(chance))
        percent = chance[metric]["percent"]
        unit = METRIC_NAMES[metric] + (" (%)" if percent else "")
        factor = 100 if percent else 1
        draw_scores(left, results, metric, factor)
        left.set_title(title, loc="left", fontsize=10, pad=20)  # above the legend
        left.set(xlabel=study.varied, ylabel=unit)
        draw_curves(right, folders[title], metric, factor)
        right.set(xlabel="labelled clips seen in finetuning", ylabel=unit)
        for axes in (left, right):
            level = factor * chance[metric]["chance"]
            axes.axhline(level, color="gray", ls="--", lw=1, label="chance")
            axes.grid(axis="y", alpha=0.3)
        right.xaxis.set_major_formatter(EngFormatter(sep=""))
        # Bars and curves fill their panels.
        left.legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
        right.legend(
            fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), title=study.varied
        )
    figure.suptitle(study.question, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def draw_curves(
    axes: Axes, folders: Mapping[str, Sequence[Path]], metric: str, factor: float
) -> None:
    """A metric in finetuning by variant: of all clips and, where they are apart, hidden ones."""
    for color, (label, runs) in enumerate(folders.items()):
        for name, dash, of in ((metric, "-", ""), (f"{metric}_hidden", ":", ", hidden clips")):
            if points := curve(runs, name):
                means = [factor * statistics.fmean(points[clips]) for clips in sorted(points)]
                axes.plot(
                    sorted(points), means, dash, color=f"C{color}", marker=".", label=label + of
                )


def draw_scores(axes: Axes, results: Results, metric: str, factor: float) -> None:
    """A metric by variant and group of clips, with standard deviations."""
    groups = list(dict.fromkeys(g for by_group in results.values() for g in by_group))
    width = 0.8 / len(groups)
    for i, group in enumerate(groups):
        at, means, spreads = [], [], []
        for position, by_group in enumerate(results.values()):
            if values := by_group.get(group, {}).get(metric):
                at.append(position + (i - (len(groups) - 1) / 2) * width)
                means.append(factor * statistics.fmean(values))
                spreads.append(factor * statistics.stdev(values) if len(values) > 1 else 0.0)
        error = spreads if any(spreads) else None  # one seed has none
        axes.bar(at, means, width, yerr=error, capsize=2, label=f"{group} clips")
    axes.set_xticks(range(len(results)), list(results), rotation=20, ha="right", fontsize=8)
