"""The worker pool: results, progress, errors, crashes and hangs."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from ivcl_fast.data import workers
from ivcl_fast.data.workers import Lost, WorkerPool, usable_cpus


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


def run_tasks(function, tasks, workers: int, report):
    with WorkerPool(workers) as pool:
        yield from pool.run(function, tasks, report)


def ignore(count: int) -> None:
    pass


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
    results.close()
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
    monkeypatch.setattr("ivcl_fast.data.workers._work", os._exit)  # dies of its argument
    with WorkerPool(2, stall_seconds=60) as pool, pytest.raises(RuntimeError, match="not begin"):
        list(pool.run(square, [1], lambda _: None, lambda lost: lost.task))
    assert not active_children()


def test_workers_killed_while_idle_are_replaced():
    """More than may end before they begin a task: where memory is short, all may be killed."""
    count, begun = workers.STARTS + 1, threading.Barrier(workers.STARTS + 1)
    with WorkerPool(count) as pool, ThreadPoolExecutor(count) as threads:
        calls = [
            threads.submit(pool.call, square, n, lambda _: begun.wait(60)) for n in range(count)
        ]
        assert [call.result() for call in calls] == [n**2 for n in range(count)]
        idle = active_children()
        assert len(idle) == count
        for worker in idle:
            worker.kill()
            worker.join()
        assert pool.call(square, 3, ignore) == 9


# --- Messages larger than what a socket holds -----------------------------------------------------


def send_half(stop: signal.Signals, pipe, message) -> None:
    """Take the place of ``workers._send``: this process ends in the middle of a message."""
    content = pickle.dumps(message)
    pipe.write(content[: len(content) // 2])
    pipe.flush()
    os.kill(os.getpid(), stop)


def clip_of(task: tuple[int, signal.Signals | None], report) -> np.ndarray:
    """A result of the size of a decoded clip at 224 pixels."""
    number, stop = task
    if stop is not None:
        workers._send = partial(send_half, stop)
    return np.full((16, 3, 224, 224), number, np.uint8)


@pytest.mark.parametrize(
    "stop, reason",
    [(signal.SIGKILL, "its process died (SIGKILL)"), (signal.SIGSTOP, "no progress for 3 seconds")],
)
def test_a_worker_that_ends_in_the_middle_of_its_result_is_replaced(stop, reason):
    lost = []

    def again(one: Lost):
        lost.append(one.reason)
        return one.task[0], None

    tasks = [(number, stop if number == 2 else None) for number in range(6)]
    with WorkerPool(2, stall_seconds=3) as pool:
        found = list(pool.run(clip_of, tasks, lambda _: None, again))
    assert sorted(result[0, 0, 0, 0] for result in found) == [*range(6)]
    assert all((result == result[0, 0, 0, 0]).all() for result in found)
    assert lost == [reason]
    assert not active_children()


def test_a_worker_that_is_stopped_while_idle_is_replaced():
    """Nobody is told: its task had not begun."""
    with WorkerPool(2, stall_seconds=3) as pool:
        assert list(pool.run(square, [2], lambda _: None)) == [4]
        (worker,) = active_children()
        os.kill(worker.pid, signal.SIGSTOP)
        assert list(pool.run(square, [3], lambda _: None)) == [9]
        assert active_children() != [worker]


def test_workers_that_are_killed_before_they_begin_are_replaced():
    """However many there are in a long run; too many in a row would be a fault of the machine."""
    with WorkerPool(2) as pool, ThreadPoolExecutor(1) as threads:
        for number in range(workers.STARTS + 1):
            assert pool.call(square, number, ignore) == number**2
            (worker,) = active_children()
            os.kill(worker.pid, signal.SIGSTOP)
            found = threads.submit(pool.call, square, number, ignore)
            assert not wait([found], 0.1).done
            worker.kill()
            assert found.result() == number**2


def test_a_worker_that_does_not_take_a_large_task_is_replaced(tmp_path):
    """It is stopped, so nobody takes what the socket cannot hold."""
    with WorkerPool(2, stall_seconds=3) as pool:
        assert pool.call(square, 2, ignore) == 4
        os.kill(active_children()[0].pid, signal.SIGSTOP)
        assert pool.call(length, (tmp_path,) * 100_000, ignore) == 100_000


def length(task: tuple[Path, ...], report) -> int:
    return len(task)


def test_closing_ends_the_calls_of_other_threads():
    """As calls that nobody waits for any more: no task is lost, and none is begun."""
    begun = threading.Event()
    with WorkerPool(2) as pool, ThreadPoolExecutor(1) as threads:
        found = threads.submit(pool.call, square, -4, lambda count: begun.set())
        assert begun.wait(60)
        pool.close()
        assert not active_children()
        with pytest.raises(RuntimeError, match="closed"):
            found.result()
        with pytest.raises(RuntimeError, match="closed"):
            pool.call(square, 1, ignore)


def test_closed_means_ended_though_two_threads_wait_for_a_worker(monkeypatch):
    """The system tells one of them only, which may be slow to note it down."""
    begun, wait_for = threading.Event(), os.waitpid

    def slow(*args):
        is_main = threading.current_thread() is threading.main_thread()
        time.sleep(0.1 * is_main)
        found = wait_for(*args)
        time.sleep(0.3 * (not is_main))
        return found

    with WorkerPool(2) as pool, ThreadPoolExecutor(1) as threads:
        threads.submit(pool.call, square, -4, lambda count: begun.set())
        assert begun.wait(60)
        monkeypatch.setattr(os, "waitpid", slow)
        pool.close()
        assert not active_children()


def test_few_tasks_are_taken_in_advance():
    """Of millions each would take memory."""
    tasks = iter(range(100))
    results = run_tasks(square, tasks, 2, ignore)
    next(results)
    results.close()
    assert 2 <= next(tasks) <= 4


def test_reports_come_in_the_thread_that_iterates():
    """A notebook's progress bar may not be drawn by another one."""
    reported = []
    list(run_tasks(square, range(20), 4, lambda _: reported.append(threading.current_thread())))
    assert reported == [threading.current_thread()] * 20


@pytest.mark.parametrize("workers", [1, 2])
def test_an_iteration_does_not_end_before_its_tasks(workers):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(run_tasks(end_of_iteration, [1, 2], workers, ignore))


def end_of_iteration(task: int, report) -> None:
    next(iter(()))


def test_a_second_interrupt_leaves_no_worker(monkeypatch):
    """It comes while the first worker is waited for, which had been given 10 seconds to end."""
    begun = threading.Barrier(3)
    waits = workers._Worker.wait

    def interrupted(worker) -> None:
        if threading.current_thread() is threading.main_thread():
            monkeypatch.setattr(workers._Worker, "wait", waits)
            raise KeyboardInterrupt
        waits(worker)

    with ThreadPoolExecutor(2) as threads, WorkerPool(2) as pool:
        calls = [threads.submit(pool.call, square, -4, lambda _: begun.wait(60)) for _ in range(2)]
        begun.wait(60)
        monkeypatch.setattr(workers._Worker, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.close()
        assert [type(call.exception()) for call in calls] == [RuntimeError] * 2
    assert not active_children()


def test_a_closed_pool_holds_no_files():
    """It may be kept, as by a loader whose epochs are abandoned one after the other."""
    with WorkerPool(2) as kept:
        assert list(kept.run(square, [2], ignore)) == [4]  # also starts what all processes share
    del kept
    before = len(os.listdir("/proc/self/fd"))
    pools = [WorkerPool(2) for _ in range(3)]
    for pool in pools:
        assert list(pool.run(square, [2], ignore)) == [4]
        pool.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_ranks_share_the_cpus(monkeypatch):
    cpus = usable_cpus()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_cpus() == max(1, cpus // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert usable_cpus() == 1
