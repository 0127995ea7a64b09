"""Some schedules of ``make soak``, and that one fails if a command loses or hides something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.faults.schedule import Schedule, Violation
from tests.support.faults.system import Fault

KEPT = {
    3: "a traceback when a file could be opened and not read",
    11: "videos were left out of a store for good because the disk could not read them",
    15: "a store was made of a video that --verify then refused",
    36: "model.partial stayed after a kill",
    42: "no checkpoint could be written beside what a kill had left",
    51: "TensorBoard's thread printed a traceback",
    74: "PyAV printed tracebacks of a file that could not be written",
}
"""Seeds that failed once, and why. The code that was mended has tests of its own besides."""
FEW = (0, 1)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="calls of the system are Linux's")
def test_commands_survive_faults():
    seeds = [str(seed) for seed in [*KEPT, *FEW]]
    command = [sys.executable, "-m", "tests.support.faults", "--seeds", *seeds]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "0 violations" in done.stdout, done.stdout + done.stderr


def ended(status: int, output: str, *struck: Fault) -> Any:
    return SimpleNamespace(status=status, output=lambda: output, struck=lambda: list(struck))


@pytest.mark.parametrize(
    ("process", "what"),
    [
        (ended(1, "Traceback (most recent call last):\n"), "a traceback"),
        (ended(-9, ""), "exit status -9"),
        (ended(2, "error: a\nerror: b\n", Fault("read", 0, "fail", 5)), "exit status 2"),
        (ended(2, "error: a\nmore\n", Fault("read", 0, "fail", 5)), "exit status 2"),
        (ended(2, "error: a\n", Fault("read", 0, "wait", 5)), "an error without a reason"),
    ],
)
def test_an_end_that_no_fault_explains_is_a_violation(tmp_path, process, what):
    with pytest.raises(Violation, match=what):
        Schedule(0, tmp_path, tmp_path, {}).check(process)


def test_an_end_that_a_fault_explains_is_none(tmp_path):
    schedule = Schedule(0, tmp_path, tmp_path, {})
    schedule.check(ended(0, "a warning\n", Fault("write", 3, "fail", 28)))
    schedule.check(ended(-9, "", Fault("any", 3, "kill")))
    schedule.check(ended(2, "a warning\nerror: x.json: full\n", Fault("write", 3, "fail", 28)))
    schedule.check(ended(2, f"error: {tmp_path}: damaged\n"), tmp_path)
    assert schedule.struck == {"fail": 2, "kill": 1}
