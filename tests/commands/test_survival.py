"""Some schedules of ``make soak``, and that one fails if a command loses or hides something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.faults.command import LOST, Command
from tests.support.faults.schedule import Schedule, Violation
from tests.support.faults.system import Fault

KEPT = {
    "train:3": "a traceback when a file could be opened and not read",
    "build:11": "videos were left out of a store for good because the disk could not read them",
    "prepare:15": "a store was made of a video that --verify then refused",
    "train:36": "model.partial stayed after a kill",
    "build:42": "no checkpoint could be written beside what a kill had left",
    "train:51": "TensorBoard's thread printed a traceback",
    "render:74": "PyAV printed tracebacks of a file that could not be written",
    "predict:23": "what a kill left beside the answers stayed for ever",
}
"""Schedules that failed once, and why. The code that was mended has tests of its own besides."""
FEW = ("ranks:1",)


@pytest.fixture
def schedule(tmp_path) -> Schedule:
    return Schedule("train", 0, tmp_path, tmp_path, ({}, [{}]))


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="calls of the system are Linux's")
def test_commands_survive_faults():
    command = [sys.executable, "-m", "tests.support.faults", "--seeds", *KEPT, *FEW]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "0 violations" in done.stdout, done.stdout + done.stderr


def ended(*ends: tuple[int, str], struck: Sequence[Fault] = (), failed: bool = True) -> Any:
    """A command with these exit statuses and outputs of its processes."""
    output = "".join(output for _, output in ends)
    return SimpleNamespace(
        failed=failed, ends=lambda: ends, struck=lambda: struck, output=lambda: output
    )


FULL, BROKEN = Fault("write", 3, "fail", 28), Fault("read", 0, "fail", 5)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (ended((1, "Traceback (most recent call last):\n")), "a traceback"),
        (ended((-9, "")), "exit status -9"),
        (ended((2, "error: a\nerror: b\n"), struck=[BROKEN]), "exit status 2"),
        (ended((2, "error: a\nmore\n"), struck=[BROKEN]), "exit status 2"),
        (ended((2, "error: a\n"), struck=[Fault("read", 0, "wait", 5)]), "error without a reason"),
        (ended((0, ""), (1, "odd\n"), struck=[BROKEN]), "exit status 1"),
        (ended((0, "")), "ranks end for no reason"),
    ],
)
def test_an_end_that_no_fault_explains_is_a_violation(schedule, command, what):
    with pytest.raises(Violation, match=what):
        schedule.check(command)


def test_an_end_that_a_fault_explains_is_none(tmp_path, schedule):
    schedule.check(ended((0, "a warning\n"), struck=[FULL], failed=False))
    schedule.check(ended((-9, ""), struck=[Fault("any", 3, "kill")]))
    schedule.check(ended((2, "a warning\nerror: x.json: full\n"), struck=[FULL]))
    schedule.check(ended((2, f"error: {tmp_path}: damaged\n")), tmp_path)
    assert schedule.struck == {"fail": 2, "kill": 1}


def process(status: int, output: str) -> Any:
    return SimpleNamespace(status=status, output=lambda: output)


def test_a_rank_may_end_because_another_has():
    ranks = object.__new__(Command)
    ranks._asked = [asked := process(-15, "")]
    died, odd, failed = process(-9, ""), process(1, "odd\n"), process(2, "error: full\n")
    ranks.processes = [died, process(1, f"rank 1 {LOST}"), asked]
    assert ranks.failed and ranks.ends() == [(-9, "")]
    ranks.processes = [failed, process(2, "loading\n"), odd]
    assert ranks.ends() == [(2, "error: full\n"), (1, "odd\n")]
    ranks.processes = [process(2, "loading\n"), died]
    assert ranks.ends() == [(2, "loading\n"), (-9, "")]
