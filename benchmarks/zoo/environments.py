"""Folders of packages, one for each version: they are put before this environment's own packages.

So every version runs on the torch that is installed here, and none of them is installed into it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.results import ROOT
from ivcl_fast.errors import UserError

FOLDER = ROOT / "build" / "zoo"

HERE = "installed"
"""The packages of this environment."""
PACKAGES: dict[str, tuple[str, ...]] = {
    "timm-0.4.12": ("timm==0.4.12",),
    "timm-0.9.16": ("timm==0.9.16",),
    "timm-1.0.9": ("timm==1.0.9",),
    "timm-1.0.15": ("timm==1.0.15",),
    HERE: (),
    "transformers-5.24.0": ("transformers==5.24.0", "tokenizers", "regex"),
    "open_clip-3.3.0": ("open_clip_torch==3.3.0", "ftfy", "regex"),
    "vit_pytorch-1.26.11": ("vit-pytorch==1.26.11",),
}
"""What pip installs, without dependencies: the others are here already (``make setup``)."""


def install(folder: Path) -> None:
    """Install every environment that ``folder`` does not have.

    Raises :class:`UserError` if pip fails.
    """
    for name, packages in PACKAGES.items():
        if not packages or (folder / name).is_dir():
            continue
        print(f"installing {' '.join(packages)} into {folder / name}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run([*pip, str(folder / name), *packages], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"pip could not install {' '.join(packages)}: {reason}")


def variables(name: str, folder: Path) -> dict[str, str]:
    """Return the environment variables with which Python finds an environment's packages.

    Raises :class:`UserError` if it was not installed.
    """
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if PACKAGES[name]:
        if not (folder / name).is_dir():
            raise UserError(f"{folder} has no {name}; install it with --install")
        path.insert(0, str(folder / name))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "HF_HUB_OFFLINE": "1"}
