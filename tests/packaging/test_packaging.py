"""What a wheel holds. ``.ci/wheel-check`` installs one in an empty environment and trains there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from ivcl_fast.models.weights import PACKAGED

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "kernels",
    "ivcl_fast",
)  # fmt: skip


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    """Without C++ objects, whose build takes a minute."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, checkout / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, checkout)
    hook = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    environment = os.environ | {"IVCL_FAST_BUILD": "none"}
    command = [sys.executable, "-P", "-c", hook, str(tmp_path)]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {*zipfile.ZipFile(wheel).namelist()}
    expected = {
        *(f"ivcl_fast/{p.relative_to(ROOT / 'ivcl_fast')}" for p in ROOT.glob("ivcl_fast/**/*.py")),
        *(f"ivcl_fast/{p.relative_to(ROOT)}" for p in ROOT.glob("kernels/**/*.py")),
        "ivcl_fast/py.typed",
        "ivcl_fast/sample.avi",
        *(f"ivcl_fast/report/templates/report.{kind}" for kind in ("html", "css", "js")),
        *(f"ivcl_fast/pretrained/{p.relative_to(PACKAGED)}" for p in PACKAGED.glob("*/*")),
    }
    assert expected <= held
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    about = f"ivcl_fast-{version}.dist-info"
    assert {name.split("/")[0] for name in held - expected} == {about}
    entries = zipfile.ZipFile(wheel).read(f"{about}/entry_points.txt").decode()
    assert "ivcl-fast = ivcl_fast.__main__:main" in entries
