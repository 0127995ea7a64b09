"""Triton, or a stand-in so that kernel files can be imported without it."""

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
        """Accepts the uses of Triton when a kernel file is imported: decorators and annotations."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if args else self

    triton = tl = _StandIn()


def _launcher_unsupported_reason() -> str | None:
    """Return why kernels cannot be launched on a GPU, or None.

    Triton launches them through a C extension that it compiles.
    """
    if os.environ.get("IVCL_FAST_TRITON") == "0":
        return "switched off by IVCL_FAST_TRITON=0"
    if torch.version.hip:
        return "the kernels are for NVIDIA GPUs, not for AMD GPUs"
    named = os.environ.get("CC")  # Triton runs it as one program without flags
    if named is not None and shutil.which(named) is None:
        return f"CC: expected a program without flags, got {named!r}"
    if named is None and not any(map(shutil.which, ("gcc", "clang"))):
        return "no C compiler for Triton (gcc, clang, or one that CC names)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    if not any((header.is_file(), os.environ.get("CPATH"), os.environ.get("C_INCLUDE_PATH"))):
        return f"no {header} for Triton (packages such as python3-dev have it)"
    return None


CANNOT_LAUNCH: str | None = _launcher_unsupported_reason()
"""Why kernels cannot be launched on a GPU, or None; ahead-of-time compilation does not need it."""

__all__ = ["CANNOT_LAUNCH", "INTERPRET", "MISSING", "tl", "triton"]
