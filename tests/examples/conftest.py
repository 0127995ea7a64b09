"""One short run for all examples that look at a run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100",
}  # fmt: skip


@dataclass(frozen=True)
class ShortRun:
    """A finished run of ``train --quick`` in the folder ``runs``, and where its data lies."""

    home: Path
    """The folder that holds ``runs`` and ``data``."""
    folder: Path
    """The run's own folder."""
    video: Path
    """One of its videos."""


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    home = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "ivcl_fast.train", "--quick"]
    done = subprocess.run(command, cwd=home, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (home / "runs").iterdir()
    return ShortRun(home, folder, min(home.glob("data/*/videos/*.avi")))
