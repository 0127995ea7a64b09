"""Triton, or a stand-in with which kernel files can still be imported where there is none."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors."""

MISSING: str | None = None
"""Why Triton cannot be imported, or None."""

try:
    import triton
    import triton.language as tl
except Exception as error:  # a broken Triton must not break the import of this package
    MISSING = f"triton cannot be imported: {error}"

    class _StandIn:
        """Accepts what a kernel file does with Triton at import: decorators and annotations."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if args else self

    triton = tl = _StandIn()


def _launcher_unsupported_reason() -> str | None:
    """Why kernels cannot start on a GPU, or None if they can.

    Triton starts them through a C extension, which it compiles first.
    """
    if os.environ.get("IVCL_FAST_TRITON") == "0":
        return "switched off by IVCL_FAST_TRITON=0"
    if torch.version.hip:
        return "the kernels are for NVIDIA GPUs, not for those of AMD"
    named = os.environ.get("CC")  # Triton starts it as it stands, as one program without flags
    if named is not None and shutil.which(named) is None:
        return f"CC: {named!r} is not the one program that Triton needs it to name"
    if named is None and not any(map(shutil.which, ("gcc", "clang"))):
        return "no C compiler for Triton (gcc, clang, or one that CC names)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    if not any((header.is_file(), os.environ.get("CPATH"), os.environ.get("C_INCLUDE_PATH"))):
        return f"no {header} for Triton (packages such as python3-dev have it)"
    return None


CANNOT_LAUNCH: str | None = _launcher_unsupported_reason()
"""Why kernels cannot start on a GPU, or None. Ahead-of-time compilation does not need this."""

__all__ = ["CANNOT_LAUNCH", "INTERPRET", "MISSING", "tl", "triton"]
