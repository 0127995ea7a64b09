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

from ivcl_fast.evaluation.metrics import clustered_interval
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.run import CLIPS, METRIC_NAMES, SCORES, markdown
from ivcl_fast.studies.definitions import Study
from ivcl_fast.training.settings import load_settings

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
    return f"{config.data.task} on {config.data.source}"


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


def right_shares(folders: Mapping[str, Sequence[Path]]) -> dict[str, dict[Answered, float]]:
    """By row of the table: the share of seeds that answer a clip right, where all have answered.

    Empty for a multi-label task, and for runs that have not kept their answers.
    """
    hits: dict[str, dict[Answered, list[float]]] = {}
    for label, runs in folders.items():
        for run in runs:
            file = run / CLIPS
            for clip in json.loads(file.read_text()) if file.exists() else ():
                key = clip["name"], clip["video"], clip.get("group", "all")
                for i, (title, right) in enumerate(clip.get("right", {}).items()):
                    row = hits.setdefault(label if i == 0 else title, {})
                    row.setdefault(key, []).append(right)
    seeds = len(next(iter(folders.values())))
    return {
        row: {key: statistics.fmean(of) for key, of in clips.items() if len(of) == seeds}
        for row, clips in hits.items()
    }


def on_clips(varied: str, metric: str, folders: Mapping[str, Sequence[Path]]) -> list[str]:
    """Markdown: what clips say of every row, and of how far it is from the first on the same ones.

    The first metric alone, which is a share of right answers.
    """
    shares = right_shares(folders)
    if not shares:
        return []
    first, base = next(iter(shares.items()))
    lines = []
    for label, found in shares.items():
        common = [clip for clip in base if clip in found]
        for group in dict.fromkeys(g for clip in common for g in ("all", clip[2])):
            clips = [clip for clip in common if group in ("all", clip[2])]
            videos = np.array([video for _, video, _ in clips])
            score = np.array([100 * found[clip] for clip in clips])
            gain = score - [100 * base[clip] for clip in clips]
            cells = with_interval(score, videos), with_interval(gain, videos, "+")
            lines.append(markdown([label, group, *(cells if label != first else (cells[0], ""))]))
    says = (
        "Mean over seeds in percent, and the difference from "
        f"*{first}* on the same clips in points, with 95 % intervals over clips:"
    )
    header = markdown([varied, "clips", METRIC_NAMES[metric], "difference"])
    return ["", says, "", header, "|---|---|---|---|", *lines]


def with_interval(values: np.ndarray, videos: np.ndarray, sign: str = "") -> str:
    """A mean over clips, and its interval where those of one video are drawn together."""
    low, high = clustered_interval(values, videos)
    return f"{values.mean():{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


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
        tables += [*on_clips(study.varied, next(iter(chance)), folders[title]), ""]
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
