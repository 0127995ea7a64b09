"""Triton, or a stand-in that lets kernel files import where there is none."""

from __future__ import annotations

import os
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

__all__ = ["INTERPRET", "MISSING", "libdevice", "tl", "triton"]
