"""The worker pool: results, progress, errors and deaths."""

from __future__ import annotations

import os
from multiprocessing import active_children

import pytest

from ivcl_fast.data.workers import run_tasks


def square(number: int, report) -> int:
    report(1)
    if number == -1:
        raise ValueError("minus one")
    if number == -2:
        os._exit(7)
    return number**2


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_once(workers):
    reports: list[int] = []
    found = sorted(run_tasks(square, range(20), workers, reports.append))
    assert found == [n**2 for n in range(20)]
    assert sum(reports) == 20
    assert not active_children()
    assert list(run_tasks(square, [], workers, reports.append)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_here(workers):
    with pytest.raises(ValueError, match="minus one"):
        list(run_tasks(square, [3, -1, 4], workers, lambda _: None))
    assert not active_children()


def test_a_death_is_told():
    with pytest.raises(RuntimeError, match=r"died \(exit code 7\)"):
        list(run_tasks(square, [3, -2], 2, lambda _: None))
    assert not active_children()


def test_an_abandoned_iteration_ends_the_workers():
    results = run_tasks(square, range(20), 2, lambda _: None)
    next(results)
    assert active_children()
    results.close()  # type: ignore[attr-defined]
    assert not active_children()
