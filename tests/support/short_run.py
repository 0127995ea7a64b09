"""One run of ``train --quick``, as a user starts it, for all tests that look at a run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ivcl_fast.files import locked

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100",
}  # fmt: skip

FLAGS = ("--compile", "--quick", "--workers", "1")  # other processes would import PyTorch


@dataclass(frozen=True)
class ShortRun:
    """A finished run in the folder ``runs``, and its data in ``data``. It is for reading only."""

    home: Path
    """The folder that holds ``runs`` and ``data``."""

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        (folder,) = (self.home / "runs").iterdir()
        return folder

    @property
    def video(self) -> Path:
        """A video like those it was trained on."""
        return min(self.home.glob("kept/videos/*.avi"))

    @property
    def said(self) -> str:
        """What the command printed."""
        return (self.home / "said").read_text()


def make_short_run(home: Path) -> ShortRun:
    """Train in a folder, unless a process that shares it has done so."""
    home.mkdir(exist_ok=True)
    run = ShortRun(home)
    with locked(home):
        if not (home / "said").exists():
            command = [sys.executable, "-m", "ivcl_fast.train", *FLAGS]
            done = subprocess.run(
                command, cwd=home, env=os.environ | ENVIRONMENT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
            # Needs PyAV, which the tests of kernels on a GPU do without.
            from ivcl_fast.data.synthetic.cater.write import SyntheticCater
            from ivcl_fast.data.synthetic.writer import write_dataset

            write_dataset(home / "kept", SyntheticCater(train=1, val=0), 1)
            (home / "said").write_text(done.stdout)
    return run
