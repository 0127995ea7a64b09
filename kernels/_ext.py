"""The C++ ops for CPUs (``csrc/``): the shared object of this process, or why none is loaded.

There is one object for each instruction set. The best that this CPU supports is loaded when the
package is imported; ``IVCL_FAST_ISA`` selects another, or ``none``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections import Counter
from pathlib import Path

import torch

from . import _triton
from ._objects import ISAS, MARK, digest, module

DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes that the C++ ops support."""
FOLDER = Path(__file__).parent
"""Folder of the shared objects."""
CSRC = FOLDER.parent / "csrc"
"""Folder of their sources in a checkout."""

ISA: str | None = None
"""The instruction set of the loaded object, or None."""
MISSING: str | None = None
"""The reason why no C++ object is loaded, or None."""
_library: ctypes.CDLL | None = None


def supported_isas() -> tuple[str, ...]:
    """Instruction sets of ``ISAS`` that this CPU supports, the best first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("generic",)
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return ("avx2",) if capability == "AVX2" else ()
    best = 2
    if torch.cpu._is_avx512_bf16_supported():
        # _init_amx asks the operating system for permission to use the tile registers.
        best = 0 if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx() else 1
    return ISAS[best:4]


def calls() -> Counter[tuple[str, str]]:
    """Calls of the C++ ops so far, by (op, ``"cpp"``); every op is listed."""
    if _library is None:
        return Counter()
    return Counter(
        {
            (_library.ivcl_fast_op_name(i).decode(), "cpp"): _library.ivcl_fast_op_calls(i)
            for i in range(_library.ivcl_fast_op_count())
        }
    )


def _load() -> str | None:
    """Load the best object; returns the reason if there is none."""
    global ISA, _library
    if _triton.INTERPRET:
        return "TRITON_INTERPRET=1 sends CPU tensors to Triton"
    requested, supported = os.environ.get("IVCL_FAST_ISA"), supported_isas()
    if requested == "none":
        return "IVCL_FAST_ISA=none"
    if requested is not None and requested not in supported:
        names = ", ".join(("none", *supported))
        return f"IVCL_FAST_ISA: expected one of {names}, got {requested!r}"
    if sys.platform != "linux":
        return "the C++ kernels are for Linux"
    if not supported:
        return "this CPU has no AVX2"
    reasons = []
    for isa in supported if requested is None else (requested,):
        path = FOLDER / f"{module(isa)}.abi3.so"
        if not path.is_file():
            continue
        try:
            _library = _open(path)
        except OSError as error:
            reasons.append(f"{path.name}: {error}")
        else:
            ISA = isa
            return None
    not_built = "not built; the build needs a C++ compiler, and torch in its environment"
    return reasons[0] if reasons else not_built


def _open(path: Path) -> ctypes.CDLL:
    """Load an object, which registers its ops; raises ``OSError`` if it is outdated."""
    if CSRC.is_dir() and (MARK + digest(CSRC)).encode() not in path.read_bytes():
        raise OSError("built from other sources than csrc/; build it again: make build")
    library = ctypes.CDLL(str(path))
    library.ivcl_fast_op_name.restype = ctypes.c_char_p
    library.ivcl_fast_op_count.restype = library.ivcl_fast_op_calls.restype = ctypes.c_int64
    return library


MISSING = _load()
OPS = frozenset(name for name, _ in calls())
"""Names of the ops that the loaded object implements."""
