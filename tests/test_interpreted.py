"""The op tests once more, through the Triton kernels in Triton's interpreter.

In a process of its own: the interpreter replaces parts of Triton for good.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_ops_interpreted():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops"],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
