"""Multi-head attention over packed qkv, by whichever backend suits the shape.

====================  ==========================================================================
``short``             our kernels: up to 128 tokens, several sequences to a tile, on a GPU; up to
                      512 on a CPU
``flash``             the ``flash-attn`` package (4 or 2) on a GPU where it is installed, else
                      PyTorch's own FlashAttention or cuDNN (on a CPU: its blocked attention)
``xformers``          ``memory_efficient_attention``, only on request
``eager``             the softmax written out, in plain PyTorch: exact, everywhere, and memory for
                      every pair of tokens
====================  ==========================================================================

``auto`` takes ``short`` for short sequences and ``flash`` for long ones. On a CPU without kernels
``eager`` is next: there PyTorch's blocked attention is the slower one, forward and backward, up to
about 1,024 tokens. float32 on a GPU is ``short`` or ``eager``: the others would round
its products to TF32.

A mask is never passed: cuDNN's backward has given NaN with one.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from . import short_attention
from ._op import missing_kernel
from .short_attention import DTYPES, MAX_HEAD_DIM, max_tokens
from .short_attention import _ref as eager_attention

MERITS = {
    "short": "short sequences stay on chip",
    "flash": "the scores of long sequences never go to memory",
    "xformers": "asked for",
    "eager": "plain PyTorch runs it",
}
BACKENDS = tuple(MERITS)
HALF = (torch.float16, torch.bfloat16)
EAGER_TOKENS = 1024
"""Up to so many a CPU is faster at a softmax written out than at PyTorch's blocked attention."""
MAX_BATCH = 65_535
"""Sequences in one call: CUDA's limit on a grid's second and third axis."""
MAX_GRADIENT = 2**31 - 1
"""Elements of FlashAttention-2's padded dq buffer, which it counts in 32 bits."""


# --- What is installed ----------------------------------------------------------------------------

_PACKAGES = {
    "flash-attn 4": ("flash_attn.cute", "flash_attn_func"),
    "flash-attn 2": ("flash_attn", "flash_attn_qkvpacked_func"),
    "xformers": ("xformers.ops", "memory_efficient_attention"),
}
_functions: dict[str, Callable] = {}


@functools.cache
def _import(package: str) -> str | None:
    """Import a package's attention function into ``_functions``; why it cannot be, or None."""
    module, name = _PACKAGES[package]
    try:
        _functions[package] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a package that breaks on import must not break ours
        return f"{package} cannot be imported ({type(error).__name__}: {error})".splitlines()[0]
    return None


def constant_to_compiler(function: Callable) -> Callable:
    """``torch.compiler.assume_constant_result``, which itself imports the compiler: a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_to_compiler
def missing_package(package: str) -> str | None:
    """Why a package of ``_PACKAGES`` cannot be used, or None; imports it when first asked."""
    return _import(package)


@constant_to_compiler
def missing_gpu(device: torch.device) -> str | None:
    """Why a CUDA device cannot run the attention kernels, or None."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU is visible"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"sm_{major}{minor} is older than sm_80"


# --- The choice -----------------------------------------------------------------------------------


def supports(
    backend: str,
    *,
    num_tokens: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> list[str]:
    """Why ``backend`` cannot take sequences of ``num_tokens`` and heads of ``head_dim`` columns.

    Empty if it can. Raises ``ValueError`` naming ``backend`` if there is none of that name.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend: {backend!r} is not one of auto, {', '.join(BACKENDS)}")
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    if backend == "eager":
        return []
    reasons: list[str | None] = [missing_gpu(device) if on_gpu else None]
    if backend == "short":
        most = max_tokens(device)
        reasons += [
            missing_kernel(device, dtype)
            or (None if dtype in DTYPES else f"no kernel for {dtype}"),
            None if 1 <= num_tokens <= most else f"not 1 to {most} tokens",
            f"heads of more than {MAX_HEAD_DIM} columns" if head_dim > MAX_HEAD_DIM else None,
        ]
    elif on_gpu:
        reasons += [
            None if dtype in HALF else f"{dtype} is neither float16 nor bfloat16",
            "heads of more than 256 columns" if head_dim > 256 else None,
        ]
    elif device.type != "cpu":
        reasons.append(f"not used on the {device.type} device")
    if backend == "xformers":
        reasons += [
            None if on_gpu else "no operator for the CPU",
            "heads of columns not divisible by 8" if head_dim % 8 else None,
            missing_package("xformers"),
        ]
    return [reason for reason in reasons if reason is not None]


def choose(
    *, num_tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[str, str]:
    """The backend that ``auto`` means for this shape, and why: its merit, and what was passed over.

    Arguments as :func:`supports` takes them.
    """
    device = torch.device(device)
    order = ["short", "flash", "eager"]
    if device.type == "cpu" and num_tokens <= EAGER_TOKENS:
        order = ["short", "eager"]
    passed: list[str] = []
    for backend in order:
        reasons = supports(
            backend, num_tokens=num_tokens, head_dim=head_dim, dtype=dtype, device=device
        )
        if not reasons:
            break
        passed.append(f"not {backend}: {', '.join(reasons)}")
    return backend, "; ".join([MERITS[backend], *passed])


def backends() -> dict[str, str]:
    """Every backend to ``"available"``, with what provides it, or to the reasons why not.

    For the first CUDA device, or the CPU where there is none, at a short bfloat16 shape.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overview = {}
    for backend in BACKENDS:
        reasons = supports(backend, num_tokens=20, head_dim=64, dtype=torch.bfloat16, device=device)
        provider = f", by {_flash_provider(device, 64)}" if backend == "flash" else ""
        overview[backend] = ", ".join(reasons) or f"available{provider}"
    return overview


# --- The backends ---------------------------------------------------------------------------------


def _flash_provider(device: torch.device, head_dim: int) -> str:
    """Which FlashAttention runs: a package on a GPU where one is installed, else PyTorch's.

    Only PyTorch's heeds ``torch.use_deterministic_algorithms``.
    """
    wanted = not torch.are_deterministic_algorithms_enabled()
    if wanted and device.type == "cuda" and head_dim % 8 == 0:
        # flash-attn 4 is generated by a DSL that the compiler cannot look into.
        if not torch.compiler.is_compiling() and missing_package("flash-attn 4") is None:
            return "flash-attn 4"
        if missing_package("flash-attn 2") is None:
            return "flash-attn 2"
    return "torch"


def _flash_attention(qkv: Tensor, num_heads: int) -> Tensor:
    qkv = qkv.unflatten(-1, (3, num_heads, -1))  # [B, N, 3, heads, d]
    provider = _flash_provider(qkv.device, qkv.shape[-1])
    if provider == "flash-attn 2":
        return _functions[provider](qkv).flatten(2)
    q, k, v = qkv.unbind(2)  # [B, N, heads, d]
    if provider == "flash-attn 4":
        out = _functions[provider](q, k, v)
        return (out[0] if isinstance(out, tuple) else out).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, heads, N, d]
    # Pinned, or PyTorch might fall back to writing the scores out. Its own order of the two stands.
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def _xformers_attention(qkv: Tensor, num_heads: int) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)  # [B, N, heads, d]
    return _functions["xformers"](q, k, v).flatten(2)


def batch_limit(num_tokens: int, num_heads: int, head_dim: int) -> int:
    """Sequences that one call of a library's attention may be given."""
    padded = -(-num_tokens // 128) * 128 * num_heads * -(-head_dim // 32) * 32
    return max(1, min(MAX_BATCH, MAX_GRADIENT // padded))


def _in_parts(run: Callable[[Tensor, int], Tensor], qkv: Tensor, num_heads: int) -> Tensor:
    limit = batch_limit(qkv.shape[1], num_heads, qkv.shape[2] // (3 * num_heads))
    if qkv.shape[0] <= limit:
        return run(qkv, num_heads)
    return torch.cat([run(part, num_heads) for part in qkv.split(limit)])


def attention(qkv: Tensor, num_heads: int, backend: str = "auto") -> Tensor:
    """Multi-head self-attention ``[B, N, D]`` of ``B`` sequences.

    ``qkv`` float ``[B, N, 3*D]``: queries, keys and values side by side, in each the heads side by
    side, as a linear layer of width ``3*D`` gives them; the scale is ``(D / num_heads) ** -0.5``.
    ``backend`` is ``auto`` (see :func:`choose`) or one of ``BACKENDS``. Raises ``ValueError``
    naming the argument if a shape does not fit or the backend cannot run here, with the reasons.
    """
    if qkv.ndim != 3 or not qkv.is_floating_point():
        raise UserError(f"qkv: {qkv.dtype} {tuple(qkv.shape)} is not a float [B, N, 3*D]")
    if num_heads < 1 or qkv.shape[2] % (3 * num_heads):
        raise UserError(
            f"num_heads: {num_heads} does not divide qkv's width {qkv.shape[2]} in 3 parts"
        )
    case: dict[str, Any] = dict(
        num_tokens=qkv.shape[1],
        head_dim=qkv.shape[2] // (3 * num_heads),
        dtype=qkv.dtype,
        device=qkv.device,
    )
    if backend == "auto":
        backend = choose(**case)[0]
    elif reasons := supports(backend, **case):
        able = [name for name in BACKENDS if not supports(name, **case)]
        raise UserError(
            f"backend: {backend!r} cannot run here: {', '.join(reasons)}; "
            f"what can: auto, {', '.join(able)}"
        )
    if backend == "short":
        return short_attention(qkv, num_heads)
    if backend == "eager":
        return eager_attention(qkv, num_heads)
    run = _flash_attention if backend == "flash" else _xformers_attention
    return _in_parts(run, qkv, num_heads)
