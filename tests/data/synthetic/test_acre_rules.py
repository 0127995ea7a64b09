"""Synthetic ACRE problems have the statistics, and give the solvers the scores, of ACRE's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from ivcl_fast.data.formats.acre import (
    CONTEXT,
    OFF,
    ON,
    QUERIES,
    TYPES,
    UNDETERMINED,
    Problem,
    Regime,
    covariation,
)
from ivcl_fast.data.synthetic.acre.rules import draw_problem

REGIMES: tuple[Regime, ...] = ("iid", "comp", "sys")


@pytest.fixture(scope="module")
def tests() -> dict[str, list[Problem]]:
    problems: dict[str, list[Problem]] = {
        regime: [draw_problem(regime, "test", 0, n) for n in range(2000)] for regime in REGIMES
    }
    problems["sys train"] = [draw_problem("sys", "train", 0, n) for n in range(2000)]
    return problems


def shares(problems: list[Problem], what: str, values: Any) -> list[float]:
    counted = Counter(getattr(problem[q], what) for problem in problems for q in QUERIES)
    assert set(counted) == set(values)
    return [100 * counted[value] / (4 * len(problems)) for value in values]


# Of 16,000 problems (of the test split by default) from ACRE's own generator: shares of labels
# and of types, then what counting scores on them, by query and by problem (all in percent).
ACRES = {
    "iid": ((37.4, 26.7, 35.9), (36.8, 11.8, 24.8, 26.7), (46.5, 6.9)),
    "comp": ((35.0, 27.1, 37.9), (40.2, 12.1, 20.6, 27.1), (49.8, 8.2)),
    "sys": ((32.7, 29.1, 38.2), (33.6, 12.0, 25.3, 29.1), (43.1, 4.8)),
    "sys train": ((37.6, 24.7, 37.7), (47.1, 12.1, 16.1, 24.7), (55.6, 11.2)),
}


@pytest.mark.parametrize("regime", ACRES)
def test_statistics_and_scores_are_acres(regime: str, tests: dict[str, list[Problem]]) -> None:
    labels, types, counting = ACRES[regime]
    problems = tests[regime]
    assert shares(problems, "label", range(3)) == pytest.approx(labels, abs=1.5)
    assert shares(problems, "type", TYPES) == pytest.approx(types, abs=1.5)

    def score(answer: Any) -> tuple[float, float]:
        right = [
            [a == p[q].label for a, q in zip(answer(p), QUERIES, strict=True)] for p in problems
        ]
        return 100 * float(np.mean(right)), 100 * float(np.mean(np.all(right, axis=1)))

    assert score(solve) == (100.0, 100.0)
    assert score(covariation) == pytest.approx(counting, abs=1.5)


def test_how_many_trials_light_up() -> None:
    def lit(regime: Regime, split: str) -> list[int]:
        problems = [draw_problem(regime, split, 3, n) for n in range(100)]
        return [sum(panel.light == "on" for panel in p[:6]) for p in problems]

    for split in ("train", "val", "test"):
        for regime in ("iid", "comp"):
            assert Counter(lit(regime, split)) == {3: 50, 4: 50}
        assert set(lit("sys", split)) == ({3} if split == "train" else {4})


def test_problems_are_built_as_acres(tests: dict[str, list[Problem]]) -> None:
    for problem in [p for regime in REGIMES for p in tests[regime]]:
        context, independent, added = problem[:6], problem[6:8], problem[8:]
        habituation = sorted((len(p.objects), p.light) for p in context[:3])
        assert habituation == [(1, "off"), (1, "on"), (2, "on")]
        assert all(panel.light == "no" for panel in problem[6:])
        assert all(len(panel.objects) == 1 and panel.ref is None for panel in independent)
        for panel in added:
            assert panel.ref is not None and context[panel.ref].light == "off"
            assert set(context[panel.ref].objects) < set(panel.objects)
        assert all(len(set(panel.objects)) == len(panel.objects) for panel in problem)
        assert set().union(*(p.objects for p in problem[6:])) <= set().union(
            *(p.objects for p in context)
        )


def test_a_problem_is_a_function_of_its_arguments() -> None:
    problem = draw_problem("iid", "test", 0, 5)
    assert problem == draw_problem("iid", "test", 0, 5)
    others = [draw_problem("iid", "test", 0, 6), draw_problem("iid", "test", 1, 5)]
    others += [draw_problem("iid", "val", 0, 5), draw_problem("comp", "test", 0, 5)]
    assert all(problem != other for other in others)


def solve(problem: Problem) -> list[int]:
    """Answer the four queries by trying every assignment of causes to the objects.

    Of the ``2^n`` assignments, keep those that agree with every trial; the answer to a query is
    that of the remaining assignments if they agree, else undetermined.
    """
    bit = {o: 1 << k for k, o in enumerate(sorted({o for p in problem for o in p.objects}))}

    def holds_cause(worlds: np.ndarray, objects: Iterable[int]) -> np.ndarray:
        return (worlds & sum(bit[o] for o in set(objects))) != 0

    worlds = np.arange(1 << len(bit))
    for i in CONTEXT:
        worlds = worlds[holds_cause(worlds, problem[i].objects) == (problem[i].light == "on")]
    answers = []
    for i in QUERIES:
        on = holds_cause(worlds, problem[i].objects)
        answers.append(ON if on.all() else UNDETERMINED if on.any() else OFF)
    return answers
