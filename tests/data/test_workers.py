"""The worker pool: results, errors and crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest

from ivcl_fast.data.workers import WorkerPool, usable_cpus
from ivcl_fast.errors import UserError


def square(number: int) -> int:
    if number == -1:
        raise ValueError("minus one")
    if number == -2:
        os._exit(7)
    if number == -3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == -5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("forked_workers")
def test_every_task_once(workers):
    with WorkerPool(workers) as pool:
        assert sorted(pool.run(square, range(20))) == [n**2 for n in range(20)]
        assert list(pool.run(square, [])) == []
    assert not active_children()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("forked_workers")
def test_an_error_is_raised_here(workers):
    with pytest.raises(ValueError, match="minus one"), WorkerPool(workers) as pool:
        list(pool.run(square, [3, -1, 4]))
    assert not active_children()


@pytest.mark.parametrize(
    ("task", "how"), [(-2, "exit code 7"), (-3, "SIGSEGV"), (-5, "SIGKILL.*fewer --workers")]
)
@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_dies_is_one_line(task, how):
    with pytest.raises(UserError, match=rf"{task}: a worker process died \({how}"):  # noqa: SIM117
        with WorkerPool(2) as pool:
            list(pool.run(square, [3, task]))
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
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
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
