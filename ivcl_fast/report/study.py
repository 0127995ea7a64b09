"""The results of a study: mean and deviation over seeds, as tables, a figure and plain numbers."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from ivcl_fast.evaluation.baselines import BASELINES
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report import scaling
from ivcl_fast.report.figures import new_figure, save
from ivcl_fast.report.study_results import (
    Chance,
    Folders,
    Results,
    correct_shares,
    in_groups,
    read_results,
    with_interval,
)
from ivcl_fast.report.tables import METRIC_NAMES, Table
from ivcl_fast.studies.definitions import Study
from ivcl_fast.training.metrics_log import MetricsLog

RESULTS = "results.json"
TEXT, FIGURE = "study.md", "study.png"
FILES = (RESULTS, TEXT, FIGURE)
"""Files that :func:`write` makes."""


# --- Tables --------------------------------------------------------------------------------------


def mean_and_deviation(values: Sequence[float], percent: bool) -> str:
    """Return mean and standard deviation over seeds, such as ``15.0 ± 7.1 %``."""
    factor, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    text = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {factor * statistics.stdev(values):.{digits}f}"
    return text + unit


def scores_table(varied: str, results: Results, chance: Chance) -> Table:
    """Return a table with a row for each variant and group of clips."""
    rows = [
        [
            name,
            group,
            *(
                mean_and_deviation(scores[m], chance[m]["percent"]) if m in scores else ""
                for m in chance
            ),
        ]
        for name, groups in results.items()
        for group, scores in groups.items()
    ]
    cells = [mean_and_deviation([of["chance"]], of["percent"]) for of in chance.values()]
    header = [varied, "clips", *(METRIC_NAMES[m] for m in chance)]
    return Table(header, [*rows, ["chance", "all", *cells]], names=2)


def differences_table(
    varied: str, metric: str, folders: Mapping[str, Sequence[Path]]
) -> Table | None:
    """Return every row's score with an interval over clips, and its difference from the first row.

    Differences are over the same clips. ``metric`` is the first one, a share of correct answers.
    None where :func:`correct_shares` are empty.
    """
    shares = correct_shares(folders)
    if not shares:
        return None
    first, base = next(iter(shares.items()))
    rows = []
    for label, found in shares.items():
        for group, clips in in_groups([clip for clip in base if clip in found]).items():
            videos = np.array([video for _, video, _ in clips])
            score = np.array([100 * found[clip] for clip in clips])
            gain = score - [100 * base[clip] for clip in clips]
            difference = "" if label == first else with_interval(gain, videos, -100, "+")
            rows.append([label, group, with_interval(score, videos, 0), difference])
    return Table([varied, "clips", METRIC_NAMES[metric], "difference"], rows, names=2)


def write(
    folder: Path,
    name: str,
    study: Study,
    folders: Folders,
    flags: Sequence[str],
    seeds: int,
    pretrainings: int,
) -> None:
    """Write ``study.md``, ``study.png`` and ``results.json`` to ``folder``; print the tables."""
    scores = {title: read_results(runs) for title, runs in folders.items()}
    values = {title: results for title, (results, _) in scores.items()}
    write_json(folder / RESULTS, {"study": name, "flags": list(flags), "values": values})
    (scaling.draw if study.axes else draw)(folder / FIGURE, study, folders, scores)
    sections = []
    for title, (results, chance) in scores.items():
        table = scores_table(study.varied, results, chance)
        table.print(title)
        sections += [f"## {title}", "", *table.markdown(), ""]
        if differences := differences_table(study.varied, next(iter(chance)), folders[title]):
            heading = (
                f"Mean over seeds in percent, and the difference from *{next(iter(results))}* on "
                "the same clips in points, with 95 % intervals over clips:"
            )
            differences.print(heading)
            sections += [heading, "", *differences.markdown(), ""]
        if study.axes:
            gains = scaling.doubling_table(study, folders[title])
            gains.print(scaling.HEADING)
            sections += [scaling.HEADING, "", *gains.markdown(), ""]
    several = [f"--pretrainings {pretrainings}"] if pretrainings > 1 else []
    command = " ".join(["python -m ivcl_fast.sweep", name, *flags, f"--seeds {seeds}", *several])
    pretrained = "One pretraining" if pretrainings == 1 else f"{pretrainings} pretrainings"
    each = "one seed" if seeds == 1 else f"{seeds} seeds"
    deviation = "" if seeds == 1 else ": mean ± standard deviation over the seeds"
    quick = " A `--quick` study shows that every part runs; its scores mean nothing."
    lines = [
        f"# {name}",
        "",
        f"{study.question} {pretrained} each, {each} of finetuning{deviation}, on the clips "
        "that the data set reports on." + (quick if "--quick" in flags else ""),
        "",
        *sections,
        "![study](study.png)",
        "",
        f"`{command}`; torch {torch.__version__}, {platform.machine()}. Values of every seed: "
        f"[{RESULTS}]({RESULTS}).",
        "",
    ]
    write_text(folder / TEXT, "\n".join(lines))


# --- Figure --------------------------------------------------------------------------------------

GROUP_STYLES: dict[str, dict[str, Any]] = {
    "all": dict(alpha=1.0),
    "visible": dict(alpha=0.45),
    "hidden": dict(alpha=0.45, hatch="////"),
}
"""How bars of a group of clips are drawn; their colour is the variant's."""


def curve(runs: Sequence[Path], metric: str) -> dict[int, list[float]]:
    """Return a metric on validation clips in finetuning by clips seen: a value per seed."""
    points: dict[int, list[float]] = {}
    for record in chain.from_iterable(MetricsLog(run).read() for run in runs):
        if record["stage"] == "finetune" and f"val_{metric}" in record:
            points.setdefault(record["clips"], []).append(record[f"val_{metric}"])
    return points


def colors_of(names: Sequence[str]) -> dict[str, Any]:
    """Return a colour for each variant, the same in all panels; baselines are gray."""
    variants = [name for name in names if not name.startswith(BASELINES)]
    return dict.fromkeys(names, "0.6") | {name: f"C{i}" for i, name in enumerate(variants)}


def draw(
    path: Path, study: Study, folders: Folders, scores: Mapping[str, tuple[Results, Chance]]
) -> None:
    """Draw the first metric of every table: bars by variant, and curves in finetuning."""
    figure = new_figure(11, 4.2 * len(folders))
    names = list(dict.fromkeys(name for results, _ in scores.values() for name in results))
    colors = colors_of(names)
    rows = figure.subfigures(len(folders), 1, squeeze=False)[:, 0]
    for row, (title, (results, chance)) in zip(rows, scores.items(), strict=True):
        metric = next(iter(chance))
        percent = chance[metric]["percent"]
        unit = METRIC_NAMES[metric] + (" (%)" if percent else "")
        factor = 100 if percent else 1
        bars, curves = row.subplots(1, 2, width_ratios=[3, 2])
        draw_bars(bars, results, metric, factor, colors)
        bars.set(xlabel=study.varied, ylabel=unit)
        hidden = draw_curves(curves, folders[title], metric, factor, colors)
        curves.set(xlabel="labelled clips seen in finetuning", ylabel=unit)
        curves.set_title(
            "validation score (dotted: hidden clips)" if hidden else "validation score", fontsize=9
        )
        curves.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in (bars, curves):
            axes.axhline(factor * chance[metric]["chance"], color="0.3", ls="--", lw=1)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
        row.suptitle(title, fontsize=10)
        groups = list(dict.fromkeys(g for by_group in results.values() for g in by_group))
        handles: list[Any] = [Line2D([], [], color="0.3", ls="--", lw=1, label="chance")]
        handles += [
            Patch(facecolor="0.3", label=f"{g} clips", **GROUP_STYLES.get(g, {})) for g in groups
        ]
        handles += [Line2D([], [], color=colors[n], lw=4, label=n) for n in folders[title]]
        if any(name.startswith(BASELINES) for name in results):
            handles.append(Line2D([], [], color="0.6", lw=4, label="baselines"))
        row.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(study.question, fontsize=11)
    save(figure, path)


def draw_bars(
    axes: Axes, results: Results, metric: str, factor: float, colors: Mapping[str, Any]
) -> None:
    """Draw a bar per variant and group of clips, with standard deviations over seeds."""
    groups = list(dict.fromkeys(g for by_group in results.values() for g in by_group))
    width = 0.8 / len(groups)
    for at, (name, by_group) in enumerate(results.items()):
        for i, group in enumerate(groups):
            if values := by_group.get(group, {}).get(metric):
                deviation = factor * statistics.stdev(values) if len(values) > 1 else None
                axes.bar(
                    at + (i - (len(groups) - 1) / 2) * width, factor * statistics.fmean(values),
                    width, yerr=deviation, capsize=2, color=colors[name],
                    **GROUP_STYLES.get(group, {}),
                )  # fmt: skip
    labels = [name.replace(": ", ":\n") for name in results]
    axes.set_xticks(range(len(results)), labels, rotation=20, ha="right", fontsize=8)


def draw_curves(
    axes: Axes,
    folders: Mapping[str, Sequence[Path]],
    metric: str,
    factor: float,
    colors: Mapping[str, Any],
) -> bool:
    """Draw a metric in finetuning by variant; return whether there are curves of hidden clips."""
    hidden = False
    for label, runs in folders.items():
        for name, dash in ((metric, "-"), (f"{metric}_hidden", ":")):
            if points := curve(runs, name):
                hidden |= dash == ":"
                means = [factor * statistics.fmean(points[clips]) for clips in sorted(points)]
                axes.plot(sorted(points), means, dash, color=colors[label], marker=".")
    return hidden
