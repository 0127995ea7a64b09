"""How scores grow with a size, such as the length of pretraining: fitted lines and their figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter, NullLocator

from ivcl_fast.report.figures import new_figure, save
from ivcl_fast.report.study_results import (
    Chance,
    Folders,
    Results,
    correct_shares,
    in_groups,
    with_interval,
)
from ivcl_fast.report.tables import Table
from ivcl_fast.studies.definitions import Study

HEADING = (
    "What doubling adds to top-1, in points, with 95 % intervals over clips: the slope of a line "
    "over the logarithm of the size, fitted by least squares:"
)
GROUP_COLORS = {"all": "C0", "visible": "C2", "hidden": "C3"}


def fit(sizes: Sequence[float], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit ``score = at_mean + slope * (log2(size) - mean)`` by least squares.

    ``scores``: ``[sizes, ...]``. Returns what doubling the size adds (the slope), shaped like one
    size's scores, and the values of the lines at the sizes, shaped like ``scores``.
    """
    doublings = np.log2(sizes) - np.log2(sizes).mean()
    slope = np.tensordot(doublings / (doublings**2).sum(), scores, 1)
    return slope, scores.mean(0) + np.multiply.outer(doublings, slope)


def doubling_table(study: Study, folders: Mapping[str, Sequence[Path]]) -> Table:
    """Return what doubling each size of a study adds to the share of correct answers, in points.

    The fit is that of :func:`fit` to every clip, whose mean is the fit to the mean; so intervals
    over clips are those of a mean. The last column says how far the scores are from their line.
    """
    shares = correct_shares(folders)
    rows = []
    for size, variants in study.axes.items():
        found = [shares[variant.label] for variant in variants.values()]
        common = [clip for clip in found[0] if all(clip in of for of in found)]
        for group, clips in in_groups(common).items():
            videos = np.array([video for _, video, _ in clips])
            scores = np.array([[100 * of[clip] for clip in clips] for of in found])
            slope, line = fit([*variants], scores)
            farthest = np.abs(scores.mean(1) - line.mean(1)).max()
            gain = with_interval(slope, videos, -100, "+")
            rows.append([size, group, gain, f"{farthest:.1f}"])
    header = ["twice the", "clips", "top-1", "farthest from the line"]
    return Table(header, rows, names=2)


def draw(
    path: Path, study: Study, folders: Folders, scores: Mapping[str, tuple[Results, Chance]]
) -> None:
    """Draw top-1 in percent over each size of a study with one table, with fitted lines."""
    ((results, _),) = scores.values()
    figure = new_figure(11, 4.2)
    panels = figure.subplots(1, len(study.axes), sharey=True, squeeze=False)[0]
    for axes, (size, variants) in zip(panels, study.axes.items(), strict=True):
        sizes = [*variants]
        for group, color in GROUP_COLORS.items():
            if not all(group in results[variant.label] for variant in variants.values()):
                continue  # the split has no clips of that kind
            values = [np.mean(results[v.label][group]["top1"]) for v in variants.values()]
            points = 100 * np.array(values)
            _, line = fit(sizes, points)
            axes.plot(sizes, points, "o", color=color, label=f"{group} clips")
            axes.plot(sizes, line, "--", color=color, lw=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=size, ylim=(0, 100))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 (%); dashed: fitted lines")
    panels[-1].legend(fontsize=8)
    figure.suptitle(study.question, fontsize=11)
    save(figure, path)
