"""The ops in C++ for CPUs (``csrc/``): which object this process loaded, or why none.

The objects are built one for each instruction set; the best that this CPU runs is loaded when the
package is imported. ``IVCL_FAST_ISA`` names another, or ``none``.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections import Counter
from pathlib import Path

import torch

from . import _triton
from ._objects import ISAS, MARK, digest, module, whole

DTYPES = (torch.float32, torch.bfloat16)
"""What the C++ implementations compute with."""
FOLDER = Path(__file__).parent
"""Where the objects lie."""
CSRC = FOLDER.parent / "csrc"
"""The sources, in a checkout."""

ISA: str | None = None
"""The instruction set of the object that is loaded, or None."""
MISSING: str | None = None
"""Why none is loaded, or None."""
_library: ctypes.CDLL | None = None


def supported_isas() -> tuple[str, ...]:
    """Those of ``ISAS`` that this CPU runs, the best first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("generic",)
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return ("avx2",) if capability == "AVX2" else ()
    best = 2
    if torch.cpu._is_avx512_bf16_supported():
        # The second call asks the kernel to save this process's tile registers.
        best = 0 if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx() else 1
    return ISAS[best:4]


def calls() -> Counter[tuple[str, str]]:
    """Calls of the C++ implementations so far, by (op, ``"cpp"``); every op is listed."""
    if _library is None:
        return Counter()
    return Counter(
        {
            (_library.ivcl_fast_op_name(i).decode(), "cpp"): _library.ivcl_fast_op_calls(i)
            for i in range(_library.ivcl_fast_op_count())
        }
    )


def _load() -> str | None:
    """Load the best object; the reason if there is none."""
    global ISA, _library
    if _triton.INTERPRET:
        return "TRITON_INTERPRET=1 sends the CPU's tensors through Triton"
    wanted, able = os.environ.get("IVCL_FAST_ISA"), supported_isas()
    if wanted == "none":
        return "IVCL_FAST_ISA=none"
    if wanted is not None and wanted not in able:
        return f"IVCL_FAST_ISA: {wanted!r} is not one of {', '.join(('none', *able))}"
    if not able:
        return "this CPU has no AVX2"
    reasons = []
    for isa in able if wanted is None else (wanted,):
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
    not_built = "it was not built: that takes a C++ compiler, and torch beside the build"
    return reasons[0] if reasons else not_built


def _open(path: Path) -> ctypes.CDLL:
    """Load an object, which registers its ops; OSError if it is not fit."""
    content = path.read_bytes()
    if not whole(content):
        raise OSError("cut off; build or install it anew")
    if CSRC.is_dir() and (MARK + digest(CSRC)).encode() not in content:
        raise OSError("of other sources than csrc/; build it anew: make build")
    library = ctypes.CDLL(str(path))
    library.ivcl_fast_op_name.restype = ctypes.c_char_p
    library.ivcl_fast_op_count.restype = library.ivcl_fast_op_calls.restype = ctypes.c_int64
    return library


MISSING = _load()
OPS = frozenset(name for name, _ in calls())
"""Names of the ops that the loaded object implements."""
