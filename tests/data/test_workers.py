"""The worker pool: results, errors, crashes and hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest

from ivcl_fast.data.workers import WorkerPool, time_limit, usable_cpus
from ivcl_fast.errors import UserError


def square(number: int) -> int:
    if number == -1:
        raise ValueError("minus one")
    if number == -2:
        os._exit(7)
    if number == -3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == -4:
        with time_limit(1):
            time.sleep(1000)
    if number == -5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_once(workers):
    with WorkerPool(workers) as pool:
        assert sorted(pool.run(square, range(20))) == [n**2 for n in range(20)]
        assert list(pool.run(square, [])) == []
    assert not active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_here(workers):
    with pytest.raises(ValueError, match="minus one"):
        list(WorkerPool(workers).run(square, [3, -1, 4]))
    assert not active_children()


def test_a_worker_that_runs_out_of_memory_is_one_line():
    with pytest.raises(UserError, match=r"a worker process was lost: it was killed \(SIGKILL\)"):
        list(WorkerPool(2).run(square, [3, -5], lambda task, _: -task))
    assert not active_children()


def test_lost_tasks_are_replaced():
    lost: dict[int, str] = {}

    def replace(task: int, reason: str) -> int:
        lost[task] = reason
        return -task

    with WorkerPool(2) as pool:
        assert sorted(pool.run(square, [1, -2, -3, -4, 5], replace)) == [1, 4, 9, 16, 25]
        assert list(pool.run(square, [6])) == [36]  # the pool goes on
    assert lost == {
        -2: "its process died (exit code 7)", -3: "its process died (SIGSEGV)",
        -4: "the decoder hung",
    }  # fmt: skip
    assert not active_children()


SCRIPT = """
import os, sys, time
from multiprocessing import active_children
from ivcl_fast.data.workers import WorkerPool

pool = WorkerPool(2)  # without "if __name__ == '__main__'"
print(*pool.run(abs, [-1, -2]), flush=True)
pool.submit(time.sleep, 1000)
print(*(child.pid for child in active_children()), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_workers_end_with_their_parent(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, tmp_path / "script.py", how],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    results, pids = ended.stdout.splitlines()
    assert sorted(results.split()) == ["1", "2"] and "Traceback" not in ended.stderr
    for pid in pids.split():
        for _ in range(100):
            if not os.path.exists(f"/proc/{pid}"):
                break
            time.sleep(0.1)
        else:
            pytest.fail("a worker outlived its parent")


def test_ranks_share_the_cpus(monkeypatch):
    cpus = usable_cpus()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_cpus() == max(1, cpus // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert usable_cpus() == 1
