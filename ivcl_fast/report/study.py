"""The results of a study: mean and deviation over seeds, as tables, a figure and plain numbers."""

from __future__ import annotations

import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.figures import new_figure, save
from ivcl_fast.report.study_results import (
    Chance,
    Compared,
    Comparisons,
    Folders,
    Results,
    compare,
    doublings,
    read_results,
)
from ivcl_fast.report.tables import METRIC_NAMES, Table
from ivcl_fast.studies.definitions import Study

RESULTS = "results.json"
TEXT, FIGURE = "study.md", "study.png"
FILES = (RESULTS, TEXT, FIGURE)
"""Files that :func:`write` makes."""
HEADING = (
    "What doubling adds to top-1, in points, with 95 % intervals over clips: the slope of a line "
    "over the logarithm of the size, fitted by least squares:"
)
"""The sentence above the lines that are fitted to a study with axes."""


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

    If clips have groups, the first table is an overview of them.
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


def doubling_table(study: Study, folders: Mapping[str, Sequence[Path]]) -> Table:
    """Return what doubling each size of a study adds to the share of correct answers."""
    rows = [
        [size, *row]
        for size, labels in study.axes.items()
        for row in doublings({value: folders[label] for value, label in labels.items()})
    ]
    return Table(["twice the", "clips", "top-1", "farthest from the line"], rows, names=2)


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
    draw(folder / FIGURE, study.question, scores)
    sections = []
    for title, (results, chance) in scores.items():
        tables = titled_tables(study.varied, results, chance, compare(folders[title]))
        next(iter(tables.values())).print(f"{title}: {next(iter(tables))}")
        if study.axes:
            tables[HEADING] = doubling_table(study, folders[title])
            tables[HEADING].print(f"{title}: {HEADING}")
        sections.append(f"## {title}")
        for heading, table in tables.items():
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


def draw(path: Path, question: str, scores: Mapping[str, tuple[Results, Chance]]) -> None:
    """Draw the first metric of every table: a row per variant, a mark per seed and group."""
    rows = [len(results) for results, _ in scores.values()]
    figure = new_figure(9, 0.3 * sum(rows) + 1.2 * len(rows) + 0.5)
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (title, (results, chance)) in zip(panels, scores.items(), strict=True):
        metric, of = next(iter(chance.items()))
        factor, unit = (100, " (%)") if of["percent"] else (1, "")
        for number, group in enumerate(groups_of(results)):
            marks = [
                (factor * value, row)
                for row, groups in enumerate(results.values())
                for value in groups.get(group, {}).get(metric, [])
            ]
            axes.plot(*zip(*marks, strict=True), "|", c=f"C{number}", ms=11, mew=2, label=group)
        axes.axvline(factor * of["chance"], color="0.4", ls="--", lw=1, label="chance")
        axes.set_yticks(range(len(results)), results)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=METRIC_NAMES[metric] + unit)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle(question)
    save(figure, path)
