"""Scores against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivcl_fast.evaluation import metrics
from ivcl_fast.evaluation.metrics import Score


def one_hot(cells: list[int], num_classes: int = 36) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(cells), num_classes).float()


# --- Top-k and distance --------------------------------------------------------------------------


def test_topk_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.3, 0.2, 0.1], [1.0, 2.0, 3.0, 4.0]])
    labels = torch.tensor([2, 0, 0])
    assert metrics.topk_correct(logits, labels, 1).tolist() == [False, True, False]
    assert metrics.topk_correct(logits, labels, 2).tolist() == [True, True, False]
    assert metrics.topk_correct(logits, labels, 4).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("guess", "truth", "distance"),
    [
        (0, 0, 0),
        (0, 35, 10),  # opposite corners
        (5, 30, 10),  # the other two
        (5, 6, 6),  # neighbours as classes, far apart on the floor: (5, 0) and (0, 1)
        (14, 20, 1),  # one cell along y
        (14, 15, 1),  # one cell along x
    ],
)
def test_grid_distance(guess: int, truth: int, distance: int) -> None:
    assert metrics.grid_distance(one_hot([guess]), torch.tensor([truth])).tolist() == [distance]


# --- Questions in groups -------------------------------------------------------------------------

TYPES = ("direct", "indirect", "screen_off", "potential")
# Three problems: all right; one wrong (a direct one); all wrong.
GUESSES = [0, 2, 1, 0, 0, 1, 1, 2, 1, 0, 2, 2]
LABELS = [0, 2, 1, 0, 2, 1, 1, 2, 2, 2, 0, 1]
KINDS = ["direct", "indirect", "potential", "screen_off"]
KINDS += ["direct", "potential", "potential", "direct"]
KINDS += ["direct", "direct", "screen_off", "potential"]
PROBLEMS = np.repeat([4, 7, 9], 4)


def test_query_scores_by_hand() -> None:
    logits, labels = one_hot(GUESSES, 3), torch.tensor(LABELS)
    scores = metrics.query_scores(logits, labels, PROBLEMS, KINDS, TYPES)
    assert list(scores) == ["query", "problem", *TYPES]
    assert {name: score.value for name, score in scores.items()} == pytest.approx(
        {
            "query": 7 / 12, "problem": 1 / 3, "direct": 2 / 5, "indirect": 1, "screen_off": 1 / 2,
            "potential": 3 / 4,
        }
    )  # fmt: skip
    assert scores["query"].chance == pytest.approx(1 / 3)
    assert scores["problem"].chance == pytest.approx(1 / 81)
    assert all(score.low < score.value or score.value == 0 for score in scores.values())
    # Problems are drawn whole, for the intervals of all queries and of those of a type.
    correct, chosen = np.array(GUESSES) == LABELS, np.array(KINDS) == "potential"
    assert scores["query"] == Score.proportion(correct, 1 / 3, PROBLEMS)
    assert scores["potential"] == Score.proportion(correct[chosen], 1 / 3, PROBLEMS[chosen])
    # The same queries in another order are the same.
    order = np.random.default_rng(0).permutation(12)
    kinds = [KINDS[i] for i in order]
    assert scores == metrics.query_scores(
        logits[order], labels[order], PROBLEMS[order], kinds, TYPES
    )


def test_answers_that_are_right_together_make_the_interval_wider() -> None:
    random = np.random.default_rng(4)
    solved = random.random(250) < 0.5
    groups, together = np.repeat(np.arange(250), 4), np.repeat(solved, 4)
    clustered = Score.proportion(together, 1 / 3, groups)
    alone = Score.proportion(together, chance=1 / 3)
    assert clustered.value == alone.value == solved.mean()
    # Four answers that are one answer: as uncertain as the 250 problems, twice the plain width.
    problems = Score.proportion(solved, chance=1 / 3)
    width = clustered.high - clustered.low
    assert width == pytest.approx(problems.high - problems.low, rel=0.1)
    assert width > 1.8 * (alone.high - alone.low)


# --- Average precision ---------------------------------------------------------------------------


def ap(scores: Sequence[float], targets: Sequence[int]) -> float:
    column = np.array(scores)[:, None], np.array(targets)[:, None]
    return float(metrics.Ranking(*column).average_precision()[0])


def plain_average_precision(scores: list[int], targets: list[bool]) -> float:
    """By definition: area under the best precision at this recall or a higher one."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        retrieved = [t for s, t in zip(scores, targets, strict=True) if s >= threshold]
        points.append((sum(retrieved) / sum(targets), sum(retrieved) / len(retrieved)))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[i:])
        before = recall
    return area


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=20))
def test_average_precision_equals_its_definition(clips: list[tuple[int, bool]]) -> None:
    scores, targets = [s for s, _ in clips], [t for _, t in clips]
    expected = plain_average_precision(scores, targets) if any(targets) else -1.0
    assert ap(scores, targets) == pytest.approx(expected)


def test_mean_average_precision_leaves_absent_classes_out() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 3.0, 0.0]])
    targets = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = metrics.Ranking(scores, targets).average_precision()
    assert found.tolist() == pytest.approx([1, 1 / 3, -1])
    assert metrics.mean_average_precision(scores, targets) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="targets: no class has a positive clip"):
        metrics.mean_average_precision(scores, torch.zeros_like(targets))


# --- Intervals and scores ------------------------------------------------------------------------


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    score = Score.mean(torch.from_numpy(values), chance=0.0)
    assert score == Score.mean(values, chance=0.0)  # the same draws every time
    # 1.96 standard errors to each side; 1,000 resamples place a bound to within 0.08 of one.
    error = values.std() / 400**0.5
    assert score.value == pytest.approx(values.mean())
    assert score.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert score.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_mean_class_accuracy_counts_every_class_alike():
    """Against counting by hand: class 0 has 3 of 4, class 1 has 0 of 1, class 2 no clip."""
    labels = np.array([0, 0, 0, 0, 1])
    logits = np.eye(3)[[0, 0, 0, 2, 0]]
    score = Score.class_mean(logits, labels)
    assert score.value == 0.375 and score.low < 0.375 < score.high and score.chance == 1 / 3
    perfect = Score.class_mean(np.eye(3)[labels], labels)
    assert perfect.value == perfect.high == 1 and perfect.low < 1
    wrong = Score.class_mean(np.eye(3)[1 - labels], labels)
    assert wrong.value == wrong.low == 0 and wrong.high > 0
