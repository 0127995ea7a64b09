"""Reading the results of a study: the scores of its runs, and how they answer each clip."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.metrics import clustered_interval
from ivcl_fast.files import read_bytes
from ivcl_fast.report.run import CLIPS, SCORES

Folders = dict[str, dict[str, list[Path]]]
"""By table and variant: a run's folder per seed."""
Results = dict[str, dict[str, dict[str, list[float]]]]
"""By variant, group of clips and metric: a value per seed."""
Chance = dict[str, dict[str, Any]]
"""By metric: a score with its ``chance``, and whether it is in ``percent``."""
Answered = tuple[str, str, str]
"""A clip's name, video and group."""


def read_results(folders: Mapping[str, Sequence[Path]]) -> tuple[Results, Chance]:
    """Read the scores of every run by variant (of baselines by their own titles), and chance."""
    results: Results = {}
    chance: Chance = {}
    for label, runs in folders.items():
        for run in runs:
            rows = read_answers(run / SCORES)
            for i, (title, groups) in enumerate(rows.items()):
                name = label if i == 0 else title
                for group, scores in groups.items():
                    for metric, score in scores.items():
                        values = results.setdefault(name, {}).setdefault(group, {})
                        values.setdefault(metric, []).append(score["value"])
                        if i == 0:
                            chance.setdefault(metric, score)
    return results, chance


def read_answers(file: Path) -> Any:
    """Read scores or clips of a run; raises :class:`UserError` if the file is damaged."""
    content = read_bytes(file)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged: not a JSON file ({error})") from None


def correct_shares(folders: Mapping[str, Sequence[Path]]) -> dict[str, dict[Answered, float]]:
    """Return the share of seeds that answer a clip correctly, by row of the table and clip.

    Clips that not every seed has answered are left out. Empty for a multi-label task, and for runs
    without :data:`~ivcl_fast.report.run.CLIPS`.
    """
    hits: dict[str, dict[Answered, list[float]]] = {}
    for label, runs in folders.items():
        for run in runs:
            file = run / CLIPS
            for clip in read_answers(file) if file.exists() else ():
                key = clip["name"], clip["video"], clip.get("group", "all")
                for i, (title, of_row) in enumerate(clip.get("correct", {}).items()):
                    row = hits.setdefault(label if i == 0 else title, {})
                    row.setdefault(key, []).append(of_row)
    seeds = len(next(iter(folders.values())))
    return {
        row: {key: statistics.fmean(of) for key, of in clips.items() if len(of) == seeds}
        for row, clips in hits.items()
    }


def doublings(sizes: Mapping[int, Sequence[Path]]) -> Iterator[tuple[str, str, str]]:
    """Yield what doubling a size adds to the share of correct answers, for each group of clips.

    ``sizes``: a run's folder per seed, by size. A row holds the group, the slope in points with its
    interval over clips, and how far the scores are from their line. The line is fitted to every
    clip; the mean of these fits is the fit to the mean.
    """
    found = [next(iter(correct_shares({"": runs}).values())) for runs in sizes.values()]
    common = [clip for clip in found[0] if all(clip in of for of in found)]
    for group, clips in in_groups(common).items():
        videos = np.array([video for _, video, _ in clips])
        scores = np.array([[100 * of[clip] for clip in clips] for of in found])  # [sizes, clips]
        slope, at_one = np.polyfit(np.log2([*sizes]), scores, 1)
        line = np.multiply.outer(np.log2([*sizes]), slope) + at_one
        farthest = np.abs(scores.mean(1) - line.mean(1)).max()
        yield group, with_interval(slope, videos, -100, "+"), f"{farthest:.1f}"


def in_groups(clips: Sequence[Answered]) -> dict[str, list[Answered]]:
    """Return the clips of each group, and before them ``all``."""
    groups: dict[str, list[Answered]] = {"all": list(clips)} if clips else {}
    for clip in clips:
        if clip[2] != "all":
            groups.setdefault(clip[2], []).append(clip)
    return groups


@dataclass(frozen=True)
class Compared:
    """How a row answers a group of clips, in percent and points, with 95 % intervals over clips."""

    interval: str = ""
    """Of the share of correct answers, such as ``[56.3, 60.1]``."""
    difference: str = ""
    """From the first row on the same clips, such as ``-1.2 [-1.9, -0.5]``; none for itself."""


Comparisons = Mapping[tuple[str, str], Compared]
"""By row of a table and group of clips."""


def compare(folders: Mapping[str, Sequence[Path]]) -> Comparisons:
    """Compare the rows of a table with its first one on the same clips, by row and group.

    Empty where :func:`correct_shares` are; without a row that has no clip in common with the first.
    """
    shares = correct_shares(folders)
    if not shares:
        return {}
    first, base = next(iter(shares.items()))
    compared = {}
    for row, of_row in shares.items():
        for group, clips in in_groups([clip for clip in base if clip in of_row]).items():
            videos = np.array([video for _, video, _ in clips])
            score = np.array([100 * of_row[clip] for clip in clips])
            gain = score - [100 * base[clip] for clip in clips]
            difference = "" if row == first else with_interval(gain, videos, -100, "+")
            compared[row, group] = Compared(interval(score, videos, 0), difference)
    return compared


def interval(values: np.ndarray, videos: np.ndarray, least: float, sign: str = "") -> str:
    """Return the interval of a mean over clips; clips of one video are drawn together.

    ``values``: percent, from ``least`` to 100.
    """
    low, high = clustered_interval(values, videos, (least, 100.0))
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]"


def with_interval(values: np.ndarray, videos: np.ndarray, least: float, sign: str = "") -> str:
    """Return a mean over clips with its :func:`interval`."""
    return f"{values.mean():{sign}.1f} {interval(values, videos, least, sign)}"
