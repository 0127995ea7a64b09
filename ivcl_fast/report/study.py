"""Write a study's results, means over seeds and paired comparisons, to ``study.md`` and a page."""

from __future__ import annotations

import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivcl_fast.evaluation.metrics import clustered_interval
from ivcl_fast.files import read_json, write_json, write_text
from ivcl_fast.report.page import PAGE, Section, write_study
from ivcl_fast.report.run import CLIPS, SCORES
from ivcl_fast.report.tables import METRIC_NAMES, Table

Folders = dict[str, dict[str, list[Path]]]
"""Run folders, one per seed, by table and variant."""
Results = dict[str, dict[str, dict[str, list[float]]]]
"""Values, one per seed, by row, group of clips and metric."""
Chance = dict[str, dict[str, Any]]
"""By metric: a score's ``chance`` and whether it is in ``percent``."""
Answered = tuple[str, str, str]
"""A clip's name, video and group."""

RESULTS, TEXT = "results.json", "study.md"


def write(
    folder: Path,
    question: str,
    varied: str,
    folders: Folders,
    command: Sequence[str],
    seeds: int,
    pretrainings: int,
) -> None:
    """Write ``study.md``, ``report.html`` and ``results.json`` to ``folder``; print the tables.

    ``varied``: a description of what varies. ``command``: the arguments of ``ivcl_fast.sweep``.
    """
    results, sections = {}, list[Section]()
    for title, runs in folders.items():
        results[title], chance = read_results(runs)
        compared = compare(runs)
        about = "Brackets: 95 % intervals over clips."
        if compared:
            first = next(iter(results[title]))
            about += f" Differences are from “{first}” on the same clips, in points."
        table = scores_table(varied, results[title], chance, compared)
        table.print(title)
        sections.append(Section(title, about, table))
    write_json(folder / RESULTS, {"command": list(command), "values": results})
    pretrained = "One pretraining" if pretrainings == 1 else f"{pretrainings} pretrainings"
    each = "one seed" if seeds == 1 else f"{seeds} seeds"
    deviation = "" if seeds == 1 else ": mean ± standard deviation over the seeds"
    quick = " A `--quick` study shows that every part runs; its scores mean nothing."
    about = (
        f"{question} {pretrained} each, {each} of finetuning{deviation}, on the clips that the "
        "data set reports on." + quick * ("--quick" in command)
    )
    runs = {
        label if len(folders) == 1 else f"{title}, {label}": seeds_of
        for title, of_table in folders.items()
        for label, seeds_of in of_table.items()
    }
    write_study(folder / PAGE, [about], sections, runs)
    parts = [
        f"# {folder.name}",
        f"{about} Curves, and the pages of the runs: [{PAGE}]({PAGE}).",
        *(text for of in sections for text in (f"## {of.title}", of.note, str(of.table))),
        f"`python -m ivcl_fast.sweep {shlex.join(command)}`; torch {torch.__version__}, "
        f"{platform.machine()}. Values of every seed: [{RESULTS}]({RESULTS}).",
    ]
    write_text(folder / TEXT, "\n\n".join(parts) + "\n")


def compared_runs(runs: Mapping[str, Path]) -> Section:
    """Return the scores of finished runs, by name, and their differences on the same clips."""
    folders = {name: [run] for name, run in runs.items()}
    results, chance = read_results(folders)
    compared = compare(folders)
    about = (
        "Brackets have 95 % intervals over clips. Differences are from "
        f"“{next(iter(runs))}” on the same clips, in points."
    )
    table = scores_table("model", {name: results[name] for name in runs}, chance, compared)
    return Section("Scores of the finetuned models", about * bool(compared), table)


# --- Scores --------------------------------------------------------------------------------------


def read_results(folders: Mapping[str, Sequence[Path]]) -> tuple[Results, Chance]:
    """Read the scores of every run by variant (baselines by title), and chance."""
    results: Results = {}
    chance: Chance = {}
    for label, runs in folders.items():
        for run in runs:
            for i, (title, groups) in enumerate(read_json(run / SCORES, "scores").items()):
                row = results.setdefault(label if i == 0 else title, {})
                for group, scores in groups.items():
                    for metric, score in scores.items():
                        row.setdefault(group, {}).setdefault(metric, []).append(score["value"])
                        if i == 0:
                            chance.setdefault(metric, score)
    return results, chance


def mean_and_deviation(values: Sequence[float], percent: bool) -> str:
    """Return mean and standard deviation over seeds, such as ``15.0 ± 7.1 %``."""
    factor, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    text = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {factor * statistics.stdev(values):.{digits}f}"
    return text + unit


def scores_table(varied: str, results: Results, chance: Chance, compared: Comparisons) -> Table:
    """Return a table with a row for each variant and group of clips, and a column per metric.

    With comparisons, the first metric has intervals and the last column has the differences.
    """
    first, *others = chance
    rows, notes = list[list[str]](), dict[tuple[int, int], str]()
    for name, groups in results.items():
        for group, scores in groups.items():
            of = compared.get((name, group), Compared())
            for column, metric in enumerate(chance, 2):
                if values := scores.get(metric):
                    each = (mean_and_deviation([v], chance[metric]["percent"]) for v in values)
                    notes[len(rows), column] = f"{name}, {group}; by seed: {', '.join(each)}"
            texts = {m: mean_and_deviation(scores[m], chance[m]["percent"]) for m in scores}
            score = f"{texts[first]} {of.interval}".rstrip()
            clips = f"{group} ({of.clips:,})" if of.clips else group
            rows.append([name, clips, score, *(texts.get(m, "") for m in others), of.difference])
    cells = [mean_and_deviation([of["chance"]], of["percent"]) for of in chance.values()]
    header = [varied, "clips", *(METRIC_NAMES[m] for m in chance), "difference"]
    return Table(header, [*rows, ["chance", "all", *cells, ""]], notes)


# --- Comparisons ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A row's accuracy on a group of clips, with 95 % intervals over clips."""

    interval: str = ""
    """Interval of the accuracy in percent, such as ``[56.3, 60.1]``."""
    difference: str = ""
    """Difference in points from the first row on the same clips, such as ``-1.2 [-1.9, -0.5]``;
    empty for the first row."""
    clips: int = 0
    """Number of clips that both rows answer."""


Comparisons = Mapping[tuple[str, str], Compared]
"""Comparisons by row of a table and group of clips."""


def correct_shares(folders: Mapping[str, Sequence[Path]]) -> dict[str, dict[Answered, float]]:
    """Return the fraction of seeds that answer a clip correctly, by row of the table and clip.

    Clips that some seed did not answer are left out. Empty for a multi-label task, or if a run has
    no :data:`~ivcl_fast.report.run.CLIPS`.
    """
    hits: dict[str, dict[Answered, list[float]]] = {}
    for label, runs in folders.items():
        for file in (run / CLIPS for run in runs):
            for clip in read_json(file, "answers") if file.exists() else ():
                key = clip["name"], clip["video"], clip.get("group", "all")
                for i, (title, correct) in enumerate(clip.get("correct", {}).items()):
                    row = hits.setdefault(label if i == 0 else title, {})
                    row.setdefault(key, []).append(correct)
    seeds = len(next(iter(folders.values())))
    return {
        row: {key: statistics.fmean(of) for key, of in clips.items() if len(of) == seeds}
        for row, clips in hits.items()
    }


def compare(folders: Mapping[str, Sequence[Path]]) -> Comparisons:
    """Compare the rows of a table with its first one on the same clips, by row and group.

    Empty if :func:`correct_shares` is. Rows without a clip in common with the first are left out.
    """
    shares = correct_shares(folders)
    compared: dict[tuple[str, str], Compared] = {}
    first, base = next(iter(shares.items()), ("", {}))
    for row, of_row in shares.items():
        common = [clip for clip in base if clip in of_row]
        groups = dict.fromkeys(["all", *(group for _, _, group in common)] if common else [])
        for group in groups:
            clips = [clip for clip in common if group in ("all", clip[2])]
            videos = np.array([video for _, video, _ in clips])
            score = np.array([100 * of_row[clip] for clip in clips])
            gain = score - [100 * base[clip] for clip in clips]
            difference = f"{gain.mean():+.1f} {interval(gain, videos, -100, '+')}"
            compared[row, group] = Compared(
                interval(score, videos, 0), "" if row == first else difference, len(clips)
            )
    return compared


def interval(values: np.ndarray, videos: np.ndarray, least: float, sign: str = "") -> str:
    """Return the bootstrap interval of a mean over clips, resampling whole videos.

    ``values``: percent, from ``least`` to 100.
    """
    low, high = clustered_interval(values, videos, (least, 100.0))
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]"
