"""Self-check of the kernels that multiply matrices, at their first use on Hopper and Blackwell.

The tensor cores of these chips work while later instructions run, and compilers have made code that
overwrites operands too early (triton#9433). For every new shape of such an op, apart from the
number of frames, its result on random numbers is therefore compared with PyTorch's once; a warning
tells how to switch the kernels off. A shape that passed is remembered in a file for this GPU, this
Triton and these sources.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _triton
from .launch import arch

log = logging.getLogger("ivcl_fast.kernels")

GENERATIONS = 9, 10
"""First digits of the compute capability of the chips that are checked."""
FRAMES = 256
"""Number of frames compared, enough for more programs than run at once."""
CACHE = Path(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ivcl_fast/checked"
)
"""Folder with an empty file for each shape that has passed."""


def tolerance(dtype: torch.dtype) -> float:
    """Largest error relative to the largest element of the result."""
    return 1e-3 if dtype == torch.float32 else 0.05


def checked(
    name: str, triton: Callable, ref: Callable, has_frames: Sequence[bool]
) -> Callable[..., Any]:
    """Return ``triton``, which is compared with ``ref`` when it is first called with a shape."""
    seen = set()

    def run(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if is_checked(device):
            key = tuple([(a.shape[1:], a.dtype) if isinstance(a, Tensor) else a for a in args])
            if key not in seen:
                seen.add(key)
                check(name, triton, ref, sample(args, has_frames), device, str(key))
        return triton(*args)

    return run


def is_checked(device: torch.device) -> bool:
    """Return whether kernels on a device are checked now; a CUDA graph cannot record a check."""
    if device.type != "cuda" or arch(device) // 10 not in GENERATIONS:
        return False
    return not torch.cuda.is_current_stream_capturing()


def sample(args: Sequence[Any], has_frames: Sequence[bool]) -> list[Any]:
    """Return arguments with few frames, and random numbers of another generator for floats."""
    found = []
    for arg, by_frame in zip(args, has_frames, strict=False):
        if isinstance(arg, Tensor):
            arg = arg[:FRAMES] if by_frame else arg
            if arg.is_floating_point():
                generator = torch.Generator(arg.device).manual_seed(len(found))
                arg = torch.empty_like(arg).normal_(generator=generator)
        found.append(arg)
    return found


def check(
    name: str, triton: Callable, ref: Callable, args: list[Any], device: torch.device, key: str
) -> None:
    """Warn if ``triton`` and ``ref`` differ, unless this shape has passed on this machine."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    version = getattr(_triton.triton, "__version__", "")
    what = f"{gpu} {version} {sources()} {name} {key}"
    passed = CACHE / hashlib.sha256(what.encode()).hexdigest()
    if passed.exists():
        return
    error = difference(triton(*args), ref(*map(in_float64, args)))
    if error <= 1:
        # Without a home that can be written to, it is checked again in every process.
        with contextlib.suppress(OSError):
            if passed.is_absolute():
                passed.parent.mkdir(parents=True, exist_ok=True)
                passed.touch()
        return
    log.warning(
        "%s is wrong on %s with Triton %s (error %.2g times the tolerance); set IVCL_FAST_TRITON=0 "
        "to use PyTorch instead, and please report it with this shape: %s",
        *(name, gpu, version, error, key),
    )


def difference(found: Any, expected: Any) -> float:
    """Return the largest error of any result, in units of its tolerance; NaN counts as infinite."""
    pairs = zip(*([x] if isinstance(x, Tensor) else x for x in (found, expected)), strict=True)
    errors = [
        ((a.float() - b).abs().max() / b.abs().max() / tolerance(a.dtype)).nan_to_num(torch.inf)
        for a, b in pairs
    ]
    return float(torch.stack(errors).max())


def in_float64(arg: Any) -> Any:
    """Return a float tensor or a float dtype as float64, and anything else as it is."""
    if isinstance(arg, torch.dtype):
        return torch.float64
    return arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg


@functools.cache
def sources() -> str:
    """Return a digest of the kernels' code."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
