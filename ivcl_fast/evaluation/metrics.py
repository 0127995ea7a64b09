"""Scores of classifiers, as the data sets' own code computes them, with chance and intervals.

Sources: CATER's ``localization_eval.py`` and ``eval.py`` for top-k, L1 and mAP; ACRE's ``main.py``
for accuracy by query, problem and type; Wilson (1927) for the interval of a proportion; Efron
(1979) for the bootstrap. Letters in shapes: V clips, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

RESAMPLES = 1000
"""Bootstrap resamples; their draws come from a fixed seed, so a report repeats exactly."""


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % interval and what chance would score."""

    value: float
    low: float
    high: float
    chance: float
    percent: bool = True
    """Whether the figures are shares, shown in percent; else numbers such as cells of distance."""

    @classmethod
    def proportion(cls, correct: Array, chance: float) -> Score:
        """Share of true values in bool ``[V]``, with Wilson's interval."""
        correct = as_array(correct)
        low, high = wilson_interval(int(correct.sum()), len(correct))
        return cls(float(correct.mean()), low, high, chance)

    @classmethod
    def mean(cls, values: Array, chance: float, percent: bool = False) -> Score:
        """Mean of ``[V]`` numbers, one per clip, with a bootstrap interval."""
        values = as_array(values).astype(np.float64)
        low, high = bootstrap_interval(lambda w: float(w @ values / w.sum()), len(values))
        return cls(float(values.mean()), low, high, chance, percent)

    @classmethod
    def clustered(cls, correct: Array, groups: Array, chance: float) -> Score:
        """Share of true values in bool ``[V]`` that come in groups, int ``[V]``, which they share.

        Clips of a group may be right or wrong together, so whole groups are drawn for the
        interval. It is never narrower than Wilson's, which holds where all clips are right or
        wrong and drawing shows no spread.
        """
        drawn = clustered_interval(correct, groups)
        alone = cls.proportion(correct, chance)
        return cls(alone.value, min(alone.low, drawn[0]), max(alone.high, drawn[1]), chance)

    @classmethod
    def mean_average_precision(cls, scores: Array, targets: Array) -> Score:
        """:func:`mean_average_precision` with a bootstrap interval over clips.

        Chance is the AP of a constant score: the prevalence, averaged over the same classes.
        """
        value = mean_average_precision(scores, targets)
        scores, targets = as_array(scores), as_array(targets)
        ranking = Ranking(scores, targets)
        low, high = bootstrap_interval(
            lambda w: mean_of_present(ranking.average_precision(w)),
            len(scores),
            resamples=200,
            centre=value,
        )
        prevalence = targets.astype(bool).mean(axis=0)
        return cls(value, max(low, 0.0), min(high, 1.0), float(prevalence[prevalence > 0].mean()))

    def format(self, value: float) -> str:
        """A number in this score's unit: ``14.8 %`` or ``2.32``."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}"

    def __str__(self) -> str:
        """For a table: ``14.8 % [12.1, 17.9]``."""
        scale, digits = (100, 1) if self.percent else (1, 2)
        low, high = (f"{scale * bound:.{digits}f}" for bound in (self.low, self.high))
        return f"{self.format(self.value)} [{low}, {high}]"


def as_array(values: Array) -> np.ndarray:
    """A tensor on any device, of any dtype that NumPy has, or an array, as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


# --- Classification and localisation -------------------------------------------------------------


def topk_correct(logits: Array, labels: Array, k: int) -> np.ndarray:
    """Whether each clip's class is among its ``k`` highest logits: bool ``[V]``.

    ``logits`` ``[V, C]``, ``labels`` int ``[V]``. Equal logits rank by class number, the lower
    first, so that top-1 is the argmax. Raises ``ValueError`` naming a bad argument.
    """
    logits, labels = checked_answers(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    return (order[:, :k] == labels[:, None]).any(axis=1)


def topk_accuracy(logits: Array, labels: Array, k: int) -> float:
    """Share of clips that are right in the sense of :func:`topk_correct`."""
    return float(topk_correct(logits, labels, k).mean())


def grid_distance(logits: Array, labels: Array, n: int = 6) -> np.ndarray:
    """City-block distance in cells from the argmax cell to the true one: int ``[V]``.

    Class ``c`` is the cell ``x = c % n``, ``y = c // n``; arguments as :func:`topk_correct`.
    """
    logits, labels = checked_answers(logits, labels)
    if logits.shape[1] != n * n:
        raise ValueError(f"logits: {logits.shape[1]} classes are not the {n * n} cells of n={n}")
    guess = logits.argmax(axis=1)
    return np.abs(guess % n - labels % n) + np.abs(guess // n - labels // n)


def grid_l1(logits: Array, labels: Array, n: int = 6) -> float:
    """Mean of :func:`grid_distance`: CATER's L1, in cells."""
    return float(grid_distance(logits, labels, n).mean())


def localization_chance(n: int = 6) -> dict[str, float]:
    """``top1``, ``top5`` and ``l1`` of a uniform guess, the true cells being uniform too.

    ``E|i - j| = (n^2 - 1) / 3n`` for two uniform coordinates. Always answering a middle cell
    beats that L1 without looking (n / 2 for an even n), so a low L1 alone proves little.
    """
    cells = n * n
    return {"top1": 1 / cells, "top5": min(5 / cells, 1.0), "l1": 2 * (cells - 1) / (3 * n)}


def checked_answers(logits: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays; raises ``ValueError`` for shapes, labels or NaN that cannot be scored."""
    logits, labels = as_array(logits), as_array(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits, labels: shapes {logits.shape} and {labels.shape} are not [V, C] and [V]"
            " with at least one clip"
        )
    if np.isnan(logits).any():
        raise ValueError(f"logits: clip {np.isnan(logits).any(axis=1).argmax()} holds NaN")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels: {labels.min()} to {labels.max()} are not within 0 to {logits.shape[1] - 1}"
        )
    return logits, labels


# --- Questions in groups -------------------------------------------------------------------------


def query_scores(
    logits: Array, labels: Array, problems: Array, types: Sequence[str], order: Sequence[str]
) -> dict[str, Score]:
    """ACRE's accuracies: ``query``, ``problem``, then one per question type.

    ``logits`` ``[V, C]`` and ``labels`` int ``[V]`` of one query each; ``problems`` int ``[V]``,
    the problem that a query belongs to; ``types`` ``[V]``, its question type. ``query`` is the
    share of right answers, ``problem`` the share of problems with nothing but right answers, and
    a type in ``order`` that occurs the share of right answers to it. Chance is a uniform guess.
    Raises ``ValueError`` naming a bad argument.
    """
    correct = topk_correct(logits, labels, 1)
    groups, kinds = as_array(problems), np.asarray(types)
    if groups.shape != correct.shape or kinds.shape != correct.shape:
        raise ValueError(
            f"problems, types: shapes {groups.shape} and {kinds.shape} are not both [V] with "
            f"V = {len(correct)}"
        )
    if unknown := sorted(set(types) - set(order)):
        raise ValueError(f"types: {unknown[0]!r} is not one of {', '.join(order)}")
    chance = 1 / as_array(logits).shape[1]
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    solved = np.bincount(group, correct) == size
    scores = {
        "query": Score.clustered(correct, groups, chance),
        "problem": Score.proportion(solved, float((chance**size).mean())),
    }
    for kind in order:
        if (of_kind := kinds == kind).any():
            scores[kind] = Score.clustered(correct[of_kind], groups[of_kind], chance)
    return scores


# --- Average precision ---------------------------------------------------------------------------


class Ranking:
    """Clips sorted once by score, per class; then AP is quick for any weights of the clips."""

    def __init__(self, scores: np.ndarray, targets: np.ndarray) -> None:
        if scores.shape != targets.shape or scores.ndim != 2 or not len(scores):
            raise ValueError(
                f"scores, targets: shapes {scores.shape} and {targets.shape} are not both [V, C]"
                " with at least one clip"
            )
        if np.isnan(scores).any():
            raise ValueError(f"scores: clip {np.isnan(scores).any(axis=1).argmax()} holds NaN")
        self.order = np.argsort(-scores, axis=0, kind="stable")  # [V, C]
        ranked = np.take_along_axis(scores, self.order, axis=0)
        self.positive = np.take_along_axis(targets.astype(bool), self.order, axis=0)
        self.ends_tie = np.ones_like(self.positive)
        self.ends_tie[:-1] = ranked[:-1] != ranked[1:]

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """AP ``[C]``, -1 without a positive; ``weights`` ``[V]`` count each clip so many times."""
        weight = np.ones(len(self.order)) if weights is None else weights
        taken = weight[self.order]  # [V, C]
        hits = taken * self.positive
        precision = hits.cumsum(axis=0) / np.maximum(taken.cumsum(axis=0), 1e-12)
        # Equal scores are retrieved together: only the precision after the last of them exists.
        precision = np.where(self.ends_tie, precision, 0)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        positives = hits.sum(axis=0)
        area = (hits * envelope).sum(axis=0)
        return np.where(positives > 0, area / np.maximum(positives, 1e-12), -1.0)


def average_precision(scores: Array, targets: Array) -> np.ndarray:
    """Interpolated (VOC 2010) average precision per class ``[C]``; -1 where nothing is positive.

    ``scores`` ``[V, C]``, higher is likelier; ``targets`` ``[V, C]``, 0 or 1. The area under the
    envelope of precision (the best precision at this recall or a higher one) over recall. This is
    CATER's measure; scikit-learn's has no envelope and comes out lower.
    """
    return Ranking(as_array(scores), as_array(targets)).average_precision()


def mean_average_precision(scores: Array, targets: Array) -> float:
    """Mean of :func:`average_precision` over the classes that have a positive.

    Raises ``ValueError`` where no class has one.
    """
    mean = mean_of_present(average_precision(scores, targets))
    if np.isnan(mean):
        raise ValueError("targets: no class has a positive clip, so there is no AP to average")
    return mean


def mean_of_present(precisions: np.ndarray) -> float:
    """Mean without the -1 of absent classes; NaN where all are absent."""
    present = precisions[precisions >= 0]
    return float(present.mean()) if len(present) else float("nan")


# --- Intervals -----------------------------------------------------------------------------------


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion; stays within [0, 1] and is right near its ends."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes, n: {successes} of {n} is no proportion")
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5 / (1 + z2 / n)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def clustered_interval(values: Array, groups: Array) -> tuple[float, float]:
    """Bootstrap interval of the mean of ``[V]`` numbers, whole groups (int ``[V]``) drawn."""
    _, group = np.unique(as_array(groups), return_inverse=True)
    sums, clips = np.bincount(group, as_array(values)), np.bincount(group)
    return bootstrap_interval(lambda w: float(w @ sums / (w @ clips)), len(clips))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
    centre: float | None = None,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of ``n`` clips, drawn anew with replacement.

    ``statistic(weights)`` is told how often each clip was drawn: float ``[n]``, summing to ``n``.
    A draw for which it does not exist (NaN) is left out. ``centre`` shifts the draws to this mean:
    for a statistic such as AP, which repeated clips push upward, so that the plain interval can
    miss the figure itself.
    """
    if n < 1:
        raise ValueError("n: no clips to draw from")
    random = np.random.default_rng(seed)
    counts = (random.multinomial(n, np.full(n, 1 / n)).astype(np.float64) for _ in range(resamples))
    draws = np.array([statistic(weights) for weights in counts])
    shift = 0.0 if centre is None else centre - np.nanmean(draws)
    low, high = np.nanpercentile(draws, [2.5, 97.5]) + shift
    return float(low), float(high)
