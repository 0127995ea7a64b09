"""Files of the C++ shared objects: instruction sets, names, and digests of their sources.

Standard library only, because ``setup.py`` runs this file before the package exists.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ISAS = ("amx", "avx512bf16", "avx512", "avx2", "generic")
"""Instruction sets that objects are built for, the best first; ``generic`` is not for x86."""
MARK = "ivcl_fast sources "
"""Text before the :func:`digest` of the sources in an object."""


def module(isa: str) -> str:
    """Module name of an instruction set's object within ``ivcl_fast.kernels``."""
    return f"_cpu_{isa}"


def digest(csrc: Path) -> str:
    """Hash of all sources in a folder: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted([*csrc.glob("*.h"), *csrc.glob("*.cpp")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]
