"""Triton, or a stand-in that lets kernel files import where there is none."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on CPU tensors."""

MISSING: str | None = None
"""Why Triton cannot be used, or None."""

try:
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice
except Exception as error:  # a broken install must not break ours
    MISSING = f"triton cannot be imported: {error}"

    class _Absent:
        """Accepts what a kernel file does with Triton at import: decorate and annotate."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if args else self

    triton = tl = libdevice = _Absent()  # type: ignore[assignment]


def _not_built() -> str | None:
    """Why Triton cannot build its launcher, a C extension, before the first kernel; or None."""
    if not any((os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang"))):
        return "no C compiler for Triton (gcc, clang, or one that CC names)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    if not any((header.is_file(), os.environ.get("CPATH"), os.environ.get("C_INCLUDE_PATH"))):
        return f"no {header} for Triton (packages such as python3-dev have it)"
    return None


BLOCKED: str | None = _not_built()
"""Why Triton cannot start kernels on a GPU, or None; to compile ahead or interpret takes less."""

__all__ = ["BLOCKED", "INTERPRET", "MISSING", "libdevice", "tl", "triton"]
