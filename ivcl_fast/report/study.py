"""The results of a study: mean and deviation over seeds, as tables, a figure and plain numbers."""

from __future__ import annotations

import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

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
    Compared,
    Comparisons,
    Folders,
    Results,
    compare,
    read_results,
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


def scores_table(varied: str, results: Results, chance: Chance, compared: Comparisons) -> Table:
    """Return a table with a row for each variant and group of clips, and a column per metric.

    If there are comparisons, the first metric has intervals, and the last column the differences.
    """
    first, *others = chance
    rows = []
    for name, groups in results.items():
        for group, scores in groups.items():
            of = compared.get((name, group), Compared())
            texts = {m: mean_and_deviation(scores[m], chance[m]["percent"]) for m in scores}
            score = f"{texts[first]} {of.interval}".rstrip()
            rows.append([name, group, score, *(texts.get(m, "") for m in others), of.difference])
    cells = [mean_and_deviation([of["chance"]], of["percent"]) for of in chance.values()]
    header = [varied, "clips", *(METRIC_NAMES[m] for m in chance), "difference"]
    lines = [header, *rows, ["chance", "all", *cells, ""]]
    header, *rows = lines if compared else [line[:-1] for line in lines]
    return Table(header, rows, names=2)


def overview_table(varied: str, results: Results, chance: Chance, compared: Comparisons) -> Table:
    """Return the first metric and its differences: a row per variant, a column per group."""
    metric, of = next(iter(chance.items()))
    groups = groups_of(results)
    rows = []
    for name, scores in results.items():
        score = [
            mean_and_deviation(scores[group][metric], of["percent"]) if group in scores else ""
            for group in groups
        ]
        gains = [compared.get((name, group), Compared()).difference for group in groups]
        rows.append([name, *score, *gains])
    by_chance = mean_and_deviation([of["chance"]], of["percent"])
    rows.append(["chance", by_chance, *[""] * (2 * len(groups) - 1)])
    return Table([varied, *groups, *(f"{group}: difference" for group in groups)], rows)


def groups_of(results: Results) -> list[str]:
    """Return the groups of clips that a table has scores of; ``all`` is the first one."""
    return list(dict.fromkeys(group for scores in results.values() for group in scores))


def titled_tables(
    varied: str, results: Results, chance: Chance, compared: Comparisons
) -> dict[str, Table]:
    """Return a study's tables for one data set and task, by the sentences above them.

    Where clips have groups, the first table is an overview of them.
    """
    base = f"the difference from *{next(iter(results))}* on the same clips, in points"
    tables = {}
    if len(groups_of(results)) > 1:
        title = f"{METRIC_NAMES[next(iter(chance))]} by group of clips"
        if compared:
            title += f", and {base}, with 95 % intervals over clips"
        tables[f"{title}:"] = overview_table(varied, results, chance, compared)
    title = "Every metric"
    if compared:
        title += f", and {base}; brackets have 95 % intervals over clips"
    tables[f"{title}:"] = scores_table(varied, results, chance, compared)
    return tables


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
        tables = titled_tables(study.varied, results, chance, compare(folders[title]))
        shown = next(iter(tables))  # the rest is read in the file
        if study.axes:
            tables[scaling.HEADING] = scaling.doubling_table(study, folders[title])
        sections.append(f"## {title}")
        for heading, table in tables.items():
            if heading in (shown, scaling.HEADING):
                table.print(f"{title}: {heading}")
            sections += [heading, str(table)]
    several = ["--pretrainings", str(pretrainings)] if pretrainings > 1 else []
    words = [name, *flags, "--seeds", str(seeds), *several]
    command = f"python -m ivcl_fast.sweep {shlex.join(words)}"
    pretrained = "One pretraining" if pretrainings == 1 else f"{pretrainings} pretrainings"
    each = "one seed" if seeds == 1 else f"{seeds} seeds"
    deviation = "" if seeds == 1 else ": mean ± standard deviation over the seeds"
    quick = " A `--quick` study shows that every part runs; its scores mean nothing."
    parts = [
        f"# {name}",
        f"{study.question} {pretrained} each, {each} of finetuning{deviation}, on the clips "
        "that the data set reports on." + (quick if "--quick" in flags else ""),
        *sections,
        "![study](study.png)",
        f"`{command}`; torch {torch.__version__}, {platform.machine()}. Values of every seed: "
        f"[{RESULTS}]({RESULTS}).",
    ]
    write_text(folder / TEXT, "\n\n".join(parts) + "\n")


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
        groups = groups_of(results)
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
    groups = groups_of(results)
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
