"""IV-CL on fused kernels, beside a plain-PyTorch reference of the same model.

Importing this touches no device and builds nothing.
"""

from __future__ import annotations

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

# ``python -m ivcl_fast.train`` imports this package first: the moment to tell of missing packages.
from ivcl_fast import console as _console  # noqa: E402

_console.check_started_module()
