"""The C++ objects as files: their instruction sets, names, and what they were built from.

Standard library only: ``setup.py`` runs this file before there is a package.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

ISAS = ("amx", "avx512bf16", "avx512", "avx2", "generic")
"""Instruction sets there may be an object for, the best first; ``generic``: other than x86."""
MARK = "ivcl_fast sources "
"""Stands in an object in front of :func:`digest` of what it was built from."""


def module(isa: str) -> str:
    """Name of an object within ``ivcl_fast.kernels``."""
    return f"_cpu_{isa}"


def digest(csrc: Path) -> str:
    """Changes with any source in a folder."""
    total = hashlib.sha256()
    for path in sorted([*csrc.glob("*.h"), *csrc.glob("*.cpp")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def whole(library: bytes) -> bool:
    """Whether an ELF file is as long as its header says: loading a shorter one kills the process.

    The section headers are the last thing in it. Layout of the header: elf(5), 64 bits.
    """
    if len(library) < 64:
        return False
    (start,), (size, count) = (
        struct.unpack_from(what, library, at) for what, at in (("=Q", 0x28), ("=HH", 0x3A))
    )
    return start + size * count <= len(library)
