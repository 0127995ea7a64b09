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
    Panel,
    Problem,
    Regime,
    covariation,
)
from ivcl_fast.data.synthetic.acre.rules import draw_problem, find

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


# Of 16,000 problems each, of tests unless said, that ACRE's own generator made: shares of labels
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


@pytest.mark.parametrize("regime", REGIMES)
def test_only_direct_questions_have_two_answers(
    regime: str, tests: dict[str, list[Problem]]
) -> None:
    asked = {(p[q].type, p[q].label) for p in tests[regime] for q in QUERIES}
    assert asked == {
        *(("direct", 0), ("direct", 2)),
        *(("indirect", 2), ("screen_off", 0), ("potential", 1)),
    }


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


def test_trials_come_in_any_order(tests: dict[str, list[Problem]]) -> None:
    problems = tests["iid"]
    for panel in (*CONTEXT,):
        lit = sum(p[panel].light == "on" for p in problems)
        assert 800 < lit < 1500
    assert len({p[8].ref for p in problems}) == 6


def test_objects_of_all_kinds_take_part(tests: dict[str, list[Problem]]) -> None:
    for regime, count in (("iid", 48), ("comp", 24), ("sys", 48)):
        assert {o for p in tests[regime] for o in p[0].objects} == set(range(count))


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


def make(*context: tuple[str, tuple[int, ...]], asked: list[tuple[int, ...]]) -> Problem:
    return (
        *(Panel(objects, light) for light, objects in context),  # type: ignore[arg-type]
        *(Panel(objects, "no") for objects in asked),
    )


BLOCKED = make(
    ("on", (1,)),
    ("off", (2,)),
    ("on", (1, 2)),
    ("on", (1, 3)),  # says nothing of 3: 1 explains it
    ("on", (4, 5)),  # one of the two, at least
    ("on", (2, 6)),  # 6, as 2 is none
    asked=[(1,), (3,), (4, 5), (2,)],
)


def test_findings_by_hand() -> None:
    found = find(BLOCKED[:6])
    assert found.causes == {1, 6}
    assert found.joint == [(4, 5)]
    assert found.objects == {
        "direct": [1],
        "indirect": [6],
        "screen_off": [2],
        "potential": [3, 4, 5],
    }


def test_of_groups_that_hold_a_cause_only_the_smallest_count() -> None:
    trials = (("on", (1,)), ("off", (2,)), ("on", (1, 2)), ("on", (3, 4)), ("on", (3, 4, 5)))
    found = find(make(*trials, ("off", (6,)), asked=[])[:6])
    assert found.joint == [(3, 4)]
    assert found.objects["potential"] == [3, 4, 5]


def test_solvers_by_hand() -> None:
    assert solve(BLOCKED) == [2, 1, 2, 0]
    # Counting: 1 lit 3 of 3, 3 lit 1 of 1, 4 and 5 too; 2 lit 2 of 3.
    assert covariation(BLOCKED) == [2, 2, 2, 2]
    others = [(6,), (4,), (2, 3), (7,)]  # 7 was never seen
    assert solve((*BLOCKED[:6], *(Panel(o, "no") for o in others))) == [2, 1, 1, 1]
