"""The confusion of a classifier: which class it answered for each class, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ivcl_fast.report.figures import new_figure, save
from ivcl_fast.text import markdown, printable

NAMED = 40
"""Largest number of classes whose names and numbers are written."""
NAME_LENGTH = 28
PAIRS = 3
"""Pairs of confused classes that the caption names."""


def confusion_picture(path: Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draw the share of answers for each label, a row per label.

    ``counts`` int ``[C labels, C answers]``, as of
    :func:`~ivcl_fast.evaluation.metrics.confusion`; ``names``: of the classes.
    """
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = classes <= NAMED
    side = 0.32 * classes if named else 7.0
    figure = new_figure(max(side, 2.0) + 3.6, max(side, 1.5) + 2.6)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="answer", ylabel="true class")
    if named:
        shown = [_short(name) for name in names]
        axes.set_xticks(range(classes), shown, rotation=90, fontsize=8)
        axes.set_yticks(range(classes), shown, fontsize=8)
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(counts[row, column]),
                ha="center", va="center", fontsize=7, color=color,
            )  # fmt: skip
    figure.colorbar(image, ax=axes, label="share of the class's clips", shrink=0.7)
    save(figure, path)


def confusion_caption(counts: np.ndarray, names: Sequence[str]) -> str:
    """Name the pairs of classes that are confused most often, in Markdown."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    found = [np.unravel_index(i, wrong.shape) for i in order if wrong.flat[i]]
    text = (
        "Which class is answered for each true class: number of clips, darker for a larger share."
    )
    if not found:
        return text + " Every answer is correct."
    most = "; ".join(
        f"{markdown(names[label])} taken for {markdown(names[answer])} "
        f"({wrong[label, answer]} of {counts[label].sum()})"
        for label, answer in found
    )
    return f"{text} Most often: {most}."


def _short(name: str) -> str:
    """Cut a long name, and keep matplotlib from reading it as mathematics."""
    name = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
    return printable(name).replace("$", r"\$")
