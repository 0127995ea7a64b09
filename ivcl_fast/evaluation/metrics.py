"""Classification metrics as defined by the data sets' code, with chance levels and intervals.

Sources: CATER's ``localization_eval.py`` and ``eval.py`` for top-k, L1 and mAP; ACRE's ``main.py``
for accuracy by query, problem and type. Intervals are from SciPy: Wilson's for proportions,
otherwise the percentile bootstrap. Shapes: V clips, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor

RESAMPLES, AP_RESAMPLES = 1000, 200
"""Number of bootstrap resamples, and for average precision, which is slow. They use a fixed seed,
so reports are reproducible."""


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval and the chance level."""

    value: float
    low: float
    high: float
    chance: float
    percent: bool = True
    """Whether the values are fractions, printed in percent, instead of numbers such as a distance
    in cells."""
    n: int = 0
    """Number of clips, frames or problems evaluated."""

    @classmethod
    def proportion(cls, correct: Array, chance: float, groups: Array | None = None) -> Score:
        """Return the fraction of true values in bool ``[V]``, with Wilson's interval.

        ``groups``: each value's group, int ``[V]``. Values of a group may be correlated, so the
        interval also covers that of a bootstrap over whole groups.
        """
        correct = as_array(correct)
        low, high = wilson_interval(int(correct.sum()), len(correct))
        if groups is not None:
            drawn = clustered_interval(correct, groups)
            low, high = min(low, drawn[0]), max(high, drawn[1])
        return cls(float(correct.mean()), low, high, chance, n=len(correct))

    @classmethod
    def mean(
        cls,
        values: Array,
        chance: float,
        percent: bool = False,
        groups: Array | None = None,
        most: float | None = None,
    ) -> Score:
        """Return the mean of ``[V]`` numbers with a bootstrap interval.

        ``percent``: whether they are fractions. ``groups``: see :meth:`proportion`; by default
        every number is a separate group. ``most``: the largest possible number, if the smallest is
        0; 1 for fractions.
        """
        values = as_array(values).astype(np.float64)
        groups = np.arange(len(values)) if groups is None else groups
        most = 1.0 if percent else most
        low, high = clustered_interval(values, groups, None if most is None else (0.0, most))
        return cls(float(values.mean()), low, high, chance, percent, len(values))

    @classmethod
    def mean_average_precision(cls, scores: Array, targets: Array) -> Score:
        """Return :func:`mean_average_precision` with a bootstrap interval over clips.

        Chance is the AP of a constant score: the prevalence, averaged over the same classes.
        """
        value = mean_average_precision(scores, targets)
        ranking, targets = Ranking(scores, targets), as_array(targets).astype(bool)
        low, high = bootstrap_interval(
            lambda w: mean_of_present(ranking.average_precision(w)),
            len(targets),
            resamples=AP_RESAMPLES,
            centre=value,
        )
        prevalence = targets.mean(axis=0)
        chance = float(prevalence[prevalence > 0].mean())
        return cls(value, max(low, 0.0), min(high, 1.0), chance, n=len(targets))

    @classmethod
    def class_mean(cls, logits: Array, labels: Array) -> Score:
        """Return the accuracy per class, averaged over the classes.

        Classes without a clip are left out. Uses a bootstrap interval; chance is a uniform guess.
        """
        correct, labels = topk_correct(logits, labels, 1), as_array(labels)
        classes = as_array(logits).shape[1]

        def mean(weights: np.ndarray) -> float:
            clips = np.bincount(labels, weights, classes)
            hits = np.bincount(labels, weights * correct, classes)
            return float((hits[clips > 0] / clips[clips > 0]).mean())

        if correct.all() or not correct.any():  # resampling would show no variation
            low, high = wilson_interval(int(correct.sum()), len(correct))
        else:
            low, high = bootstrap_interval(mean, len(labels))
        return cls(mean(np.ones(len(labels))), low, high, 1 / classes, n=len(labels))

    def format(self, value: float) -> str:
        """Return a number in this score's unit, such as ``14.8 %`` or ``2.32``."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}"

    def __str__(self) -> str:
        """Return value and interval for a table, such as ``14.8 % [12.1, 17.9]``."""
        low, high = (self.format(bound).removesuffix(" %") for bound in (self.low, self.high))
        return f"{self.format(self.value)} [{low}, {high}]"


def as_array(values: Array) -> np.ndarray:
    """Convert a tensor on any device to a NumPy array; return an array unchanged."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


# --- Classification and localisation -------------------------------------------------------------


def topk_correct(logits: Array, labels: Array, k: int) -> np.ndarray:
    """Return whether each clip's class is among its ``k`` highest logits: bool ``[V]``.

    ``logits`` ``[V, C]``, ``labels`` int ``[V]``. Ties rank the lower class first, so that top-1 is
    the argmax. Raises ``ValueError`` for NaN.
    """
    logits, labels = as_answers(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    return (order[:, :k] == labels[:, None]).any(axis=1)


def grid_distance(logits: Array, labels: Array, n: int = 6) -> np.ndarray:
    """Return the city-block distance in cells from the argmax cell to the true one: int ``[V]``.

    Its mean is CATER's L1. Class ``c`` is the cell ``x = c % n``, ``y = c // n``. The arguments are
    those of :func:`topk_correct`.
    """
    logits, labels = as_answers(logits, labels)
    guess = logits.argmax(axis=1)
    return np.abs(guess % n - labels % n) + np.abs(guess // n - labels // n)


def chance_distance(n: int = 6) -> float:
    """Return the mean distance in cells of a uniform guess if true cells are uniform.

    ``E|i - j| = (n^2 - 1) / 3n`` for two uniform coordinates. Always answering a middle cell has a
    shorter mean distance (n / 2 for an even n), so a short distance alone proves little.
    """
    return 2 * (n * n - 1) / (3 * n)


def as_answers(logits: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays; raise ``ValueError`` for NaN, which has no rank."""
    logits, labels = as_array(logits), as_array(labels)
    if np.isnan(logits).any():
        raise ValueError(f"logits: clip {np.isnan(logits).any(axis=1).argmax()} contains NaN")
    return logits, labels


# --- Questions in groups -------------------------------------------------------------------------


def query_scores(
    logits: Array, labels: Array, problems: Array, types: Sequence[str], order: Sequence[str]
) -> dict[str, Score]:
    """Return ACRE's accuracies: ``query``, ``problem``, then one per question type.

    ``logits`` ``[V, C]`` and ``labels`` int ``[V]`` of one query each; ``problems`` int ``[V]``,
    the query's problem; ``types`` ``[V]``, its question type. ``query`` is the accuracy over
    queries, ``problem`` the fraction of problems with all queries correct. Each type in ``order``
    that occurs has its own accuracy. Chance is a uniform guess.
    """
    correct = topk_correct(logits, labels, 1)
    groups, type_of = as_array(problems), np.asarray(types)
    chance = 1 / as_array(logits).shape[1]
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    solved = np.bincount(group, correct) == size
    scores = {
        "query": Score.proportion(correct, chance, groups),
        "problem": Score.proportion(solved, float((chance**size).mean())),
    }
    for name in order:
        if (chosen := type_of == name).any():
            scores[name] = Score.proportion(correct[chosen], chance, groups[chosen])
    return scores


# --- Average precision ---------------------------------------------------------------------------


class Ranking:
    """Clips sorted once per class by score, so that AP is fast for many weightings of the clips.

    ``scores`` float ``[V, C]``, higher is likelier; ``targets`` ``[V, C]``, 0 or 1. Raises
    ``ValueError`` for NaN.
    """

    def __init__(self, scores: Array, targets: Array) -> None:
        scores, targets = as_answers(scores, targets)
        self.order = np.argsort(-scores, axis=0, kind="stable")  # [V, C]
        ranked = np.take_along_axis(scores, self.order, axis=0)
        self.positive = np.take_along_axis(targets.astype(bool), self.order, axis=0)
        self.ends_tie = np.ones_like(self.positive)
        self.ends_tie[:-1] = ranked[:-1] != ranked[1:]

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return interpolated (VOC 2010) AP per class, ``[C]``; -1 for a class without positives.

        Clip ``i`` counts ``weights[i]`` times. AP is the area under the envelope of precision (the
        best precision at this recall or a higher one) over recall. This is CATER's measure;
        scikit-learn's has no envelope and is lower.
        """
        weight = np.ones(len(self.order)) if weights is None else weights
        taken = weight[self.order]  # [V, C]
        hits = taken * self.positive
        precision = hits.cumsum(axis=0) / np.maximum(taken.cumsum(axis=0), 1e-12)
        # Equal scores are retrieved together: precision is only defined after the last of them.
        precision = np.where(self.ends_tie, precision, 0)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        positives = hits.sum(axis=0)
        area = (hits * envelope).sum(axis=0)
        return np.where(positives > 0, area / np.maximum(positives, 1e-12), -1.0)


def mean_average_precision(scores: Array, targets: Array) -> float:
    """Return the mean AP (see :class:`Ranking`) over the classes with a positive clip.

    Raises ``ValueError`` if there is none.
    """
    mean = mean_of_present(Ranking(scores, targets).average_precision())
    if np.isnan(mean):
        raise ValueError("targets: no class has a positive clip, so there is no AP to average")
    return mean


def mean_of_present(precisions: np.ndarray) -> float:
    """Return the mean without the -1 of absent classes; NaN where all are absent."""
    present = precisions[precisions >= 0]
    return float(present.mean()) if len(present) else float("nan")


# --- Intervals -----------------------------------------------------------------------------------


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion, which is also valid near 0 and 1."""
    from scipy.stats import binomtest  # takes a second to import

    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return float(low), float(high)


def clustered_interval(
    values: Array, groups: Array, bounds: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of ``[V]`` numbers, resampling whole groups.

    ``groups``: each number's group, int ``[V]``. ``bounds``: the smallest and the largest possible
    number, if known. With them, the interval has a width even if all groups have the same mean
    (such as no success) and resampling shows no variation: a group may differ with a probability of
    up to Wilson's upper bound for 0 out of the number of groups.
    """
    _, group = np.unique(as_array(groups), return_inverse=True)
    sums, clips = np.bincount(group, as_array(values)), np.bincount(group)
    means = sums / clips
    if bounds is not None and np.ptp(means) < 1e-12:
        _, other = wilson_interval(0, len(clips))
        low, high = (float(means[0] + other * (bound - means[0])) for bound in bounds)
        return low, high
    return bootstrap_interval(lambda w: float(w @ sums / (w @ clips)), len(clips))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    resamples: int = RESAMPLES,
    centre: float | None = None,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic of ``n`` clips, drawn with replacement.

    ``statistic(weights)`` takes the number of times each clip was drawn: float ``[n]``, summing to
    ``n``. Draws for which it is NaN are left out. ``centre`` shifts the draws to this mean. AP
    needs the shift: repeated clips raise it, so the unshifted interval may not contain the value.
    """
    if n == 1:  # a single clip shows no variation
        value = statistic(np.ones(1))
        return value, value
    from scipy.stats import bootstrap  # takes a second to import

    with warnings.catch_warnings(action="ignore"):  # of undefined draws
        drawn = bootstrap(
            (np.arange(n),),
            lambda clips: statistic(np.bincount(clips, minlength=n).astype(np.float64)),
            n_resamples=resamples,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        ).bootstrap_distribution
    shift = 0.0 if centre is None else centre - np.nanmean(drawn)
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) + shift
    return float(low), float(high)
