"""IV-CL on fused kernels, beside a plain-PyTorch reference of the same model.

Importing this touches no device and builds nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A bare checkout keeps the kernels at the top level, installed copies inside the package: this lets
# ``import ivcl_fast.kernels`` find them in both without an install.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "kernels" / "__init__.py").is_file():
    __path__.append(str(_root))

from ivcl_fast.config import IVCLConfig  # noqa: E402
from ivcl_fast.data.clip import load_clip  # noqa: E402
from ivcl_fast.models import reference, supervised  # noqa: E402
from ivcl_fast.models.accelerate import Report, accelerate, restore  # noqa: E402
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, Supervised  # noqa: E402

__all__ = [
    "IVCL",
    "IVCLClassifier",
    "IVCLConfig",
    "Report",
    "Supervised",
    "accelerate",
    "load_clip",
    "reference",
    "restore",
    "supervised",
]

# While Python looks for the module of ``python -m ivcl_fast.train`` it imports this package, with
# ``-m`` in place of the module's path: the moment to tell which packages the command lacks.
if getattr(sys, "argv", [])[:1] == ["-m"]:
    from ivcl_fast.console import check_started_module

    check_started_module()
