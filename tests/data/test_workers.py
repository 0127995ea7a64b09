"""The worker pool: results, progress, errors, crashes and hangs."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import active_children

import pytest

from ivcl_fast.data.workers import Lost, WorkerPool, run_tasks, usable_cpus


def square(number: int, report) -> int:
    report(1)
    if number == -1:
        raise ValueError("minus one")
    if number == -2:
        os._exit(7)
    if number == -3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == -4:
        time.sleep(1000)
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


def test_a_crash_is_reported():
    with pytest.raises(RuntimeError, match=r"died \(exit code 7\)"):
        list(run_tasks(square, [3, -2], 2, lambda _: None))
    assert not active_children()


def test_an_abandoned_iteration_ends_the_workers():
    results = run_tasks(square, range(20), 2, lambda _: None)
    next(results)
    assert active_children()
    results.close()  # type: ignore[attr-defined]
    assert not active_children()


def test_lost_tasks_are_replaced_and_their_progress_subtracted():
    lost: list[Lost] = []

    def replace(one: Lost) -> int:
        lost.append(one)
        return -one.task

    reports: list[int] = []
    with WorkerPool(2, stall_seconds=3) as pool:
        found = sorted(pool.run(square, [1, -2, -3, -4, 5], reports.append, replace))
        assert found == [1, 4, 9, 16, 25]
        again = list(pool.run(square, [6], reports.append))  # the pool goes on
    assert again == [36]
    assert sum(reports) == 6
    assert {one.task: one.reason for one in lost} == {
        -2: "its process died (exit code 7)",
        -3: "its process died (SIGSEGV)",
        -4: "no progress for 3 seconds",
    }
    assert all(one.reports == (1,) for one in lost)
    assert not active_children()


def test_a_worker_that_cannot_start_is_not_blamed_on_its_task(monkeypatch):
    """For example because a script has no ``if __name__ == "__main__"``."""
    monkeypatch.setattr("ivcl_fast.data.workers._work", os._exit)  # dies of its argument
    with WorkerPool(1, stall_seconds=60) as pool, pytest.raises(RuntimeError, match="not begin"):
        list(pool.run(square, [1], lambda _: None, lambda lost: lost.task))
    assert not active_children()


def test_a_worker_killed_while_idle_is_replaced():
    with WorkerPool(1) as pool:
        assert list(pool.run(square, [2], lambda _: None)) == [4]
        (worker,) = active_children()
        worker.kill()
        worker.join()
        assert list(pool.run(square, [3], lambda _: None)) == [9]


def test_receive_times_out():
    with WorkerPool(1) as pool:
        assert pool.has_room and not pool.busy
        pool.submit(square, -4)
        assert not pool.has_room and pool.busy == 1
        while (message := pool.receive()) and message.kind != "report":
            pass
        assert pool.receive(timeout=0.01) is None
    assert not active_children()


def test_ranks_share_the_cpus(monkeypatch):
    cpus = usable_cpus()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_cpus() == max(1, cpus // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert usable_cpus() == 1
