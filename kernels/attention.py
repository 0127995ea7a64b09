"""Multi-head attention over packed qkv, dispatched to the best backend for the shape.

* ``short``: this project's kernels, up to 128 tokens on a GPU, where several sequences share a
  tile, and up to 512 on a CPU.
* ``flash``: on a GPU the ``flash-attn`` package if installed, else PyTorch's
  FlashAttention or cuDNN; on a CPU PyTorch's blocked attention.
* ``xformers``: ``memory_efficient_attention``, only on request.
* ``eager``: an explicit softmax in plain PyTorch. It is exact and runs everywhere, but stores a
  score for every pair of tokens.

:func:`select_backend` is the dispatcher: it goes through a priority list and takes the first
backend for which :func:`not_supported_reasons` is empty. The list is ``short``, ``flash``,
``eager``; on a CPU without kernels ``eager`` precedes ``flash`` up to 1,024 tokens, where it is
faster, forward and backward. float32 on a GPU runs on ``short`` or ``eager``, because the
others would round its products to TF32.

No backend gets an ``attn_mask``: with one, cuDNN's backward has returned NaN.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from . import short_attention
from ._autograd import is_transformed
from ._op import chip_unsupported_reason, constant_when_compiled, device_kind, unsupported_reason
from ._random import draw_seed
from .short_attention import MAX_HEAD_DIM, _ref, max_tokens

HALF = (torch.float16, torch.bfloat16)
EAGER_TOKENS = 1024
"""Longest sequence for which an explicit softmax beats PyTorch's blocked attention on a CPU."""
MAX_BATCH = 65_535
"""Largest batch of one call: CUDA's limit on the second and third axis of a grid."""
MAX_GRADIENT = 2**31 - 1
"""Largest size of FlashAttention-2's padded dq buffer, which it indexes with 32 bits."""


# --- Packages and devices -------------------------------------------------------------------------

_PACKAGES = {
    "flash-attn": ("flash_attn", "flash_attn_qkvpacked_func"),
    "xformers": ("xformers.ops", "memory_efficient_attention"),
}
_functions: dict[str, Callable] = {}


@functools.cache
def _import(package: str) -> str | None:
    """Import a package's attention function into ``_functions``; returns the error, or None."""
    module, name = _PACKAGES[package]
    try:
        _functions[package] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a broken package must not break this one
        return f"{package} cannot be imported ({type(error).__name__}: {error})".splitlines()[0]
    return None


@constant_when_compiled
def package_unsupported_reason(package: str) -> str | None:
    """Why a package of ``_PACKAGES`` cannot be imported, or None. The first call imports it."""
    return _import(package)


@constant_when_compiled
def gpu_unsupported_reason(device: torch.device) -> str | None:
    """Why a CUDA device cannot run attention kernels, or None."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU is visible"
    return chip_unsupported_reason(device)


# --- Backends -------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """What the choice of a backend depends on."""

    num_tokens: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class Backend(NamedTuple):
    """One way to compute attention."""

    merit: str
    """Why it is selected if it can run."""
    conditions: Callable[[Inputs], list[str | None]]
    """Returns, for each condition, None if the inputs satisfy it, else the reason why not."""
    run: Callable[..., Tensor]
    """Maps qkv ``[B, N, 3*D]`` and the number of heads to ``[B, N, D]``; the backends in
    :data:`DROPPING` also take the dropout probability."""


def _short_conditions(x: Inputs) -> list[str | None]:
    most = max_tokens(x.device)
    return [
        unsupported_reason(x.device, x.dtype),
        None if 1 <= x.num_tokens <= most else f"not 1 to {most} tokens",
        None if x.head_dim <= MAX_HEAD_DIM else f"heads of more than {MAX_HEAD_DIM} columns",
    ]


def _flash_conditions(x: Inputs) -> list[str | None]:
    no_tokens = None if x.num_tokens else "no tokens"
    if device_kind(x.device) != "cuda":
        on_cpu = x.device.type == "cpu"
        return [None if on_cpu else f"not used on the {x.device.type} device", no_tokens]
    return [
        None if x.dtype in HALF else f"{x.dtype} is neither float16 nor bfloat16",
        None if x.head_dim <= 256 else "heads of more than 256 columns",
        no_tokens,
        _wide_heads_unsupported_reason(x),
    ]


def _wide_heads_unsupported_reason(x: Inputs) -> str | None:
    """Return why PyTorch has no backward kernel for wide heads: shared memory is too small.

    Source: ``check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`` in its
    ``cuda/sdp_utils.cpp``.
    """
    if x.device.type != "cuda" or not 192 < x.head_dim <= 224:
        return None
    major, minor = torch.cuda.get_device_capability(x.device)
    small = major == 12 or (major == 8 and minor > 0)
    return f"no kernel for heads of 193 to 224 columns on sm_{major}{minor}" if small else None


def _xformers_conditions(x: Inputs) -> list[str | None]:
    return [
        *_flash_conditions(x),
        None if x.device.type == "cuda" else "no operator for the CPU",
        None if x.head_dim % 8 == 0 else "heads of columns not divisible by 8",
        package_unsupported_reason("xformers"),
    ]


def max_batch(num_tokens: int, num_heads: int, head_dim: int) -> int:
    """Return the largest number of sequences for one call of a library's attention."""
    padded = -(-num_tokens // 128) * 128 * num_heads * -(-head_dim // 32) * 32
    return max(1, min(MAX_BATCH, MAX_GRADIENT // padded))


def _in_batches(run: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Split batches larger than :func:`max_batch` into several calls."""

    @functools.wraps(run)
    def run_in_batches(qkv: Tensor, num_heads: int) -> Tensor:
        limit = max_batch(qkv.shape[1], num_heads, qkv.shape[2] // (3 * num_heads))
        if qkv.shape[0] <= limit:
            return run(qkv, num_heads)
        return torch.cat([run(part, num_heads) for part in qkv.split(limit)])

    return run_in_batches


def _flash_provider(device: torch.device, head_dim: int) -> str:
    """Which FlashAttention runs: the installed package on a GPU, else PyTorch's.

    Only PyTorch's respects ``torch.use_deterministic_algorithms``.
    """
    may_use_package = not torch.are_deterministic_algorithms_enabled()
    if may_use_package and device.type == "cuda" and head_dim % 8 == 0:
        return "torch" if package_unsupported_reason("flash-attn") else "flash-attn"
    return "torch"


def package_flash_attention(qkv: Tensor) -> Tensor:
    """FlashAttention of the installed package, ``[B, N, 3, heads, d]`` to ``[B, N, heads, d]``."""
    return _functions["flash-attn"](qkv)


def split_heads(qkv: Tensor, num_heads: int) -> Tensor:
    """Queries, keys and values as libraries take them, ``[B, N, 3, heads, d]``."""
    # Their kernels need heads with contiguous columns.
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    return qkv.unflatten(-1, (3, num_heads, -1))


@_in_batches
def _flash_attention(qkv: Tensor, num_heads: int) -> Tensor:
    qkv = split_heads(qkv, num_heads)
    if _flash_provider(qkv.device, qkv.shape[-1]) == "flash-attn":
        return package_flash_attention(qkv).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # [B, heads, N, d]
    # Otherwise PyTorch might fall back to an explicit softmax. It orders these two itself.
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


@_in_batches
def _xformers_attention(qkv: Tensor, num_heads: int) -> Tensor:
    return _functions["xformers"](*split_heads(qkv, num_heads).unbind(2)).flatten(2)


def eager_attention(qkv: Tensor, num_heads: int, dropout: float = 0.0) -> Tensor:
    """Attention with an explicit softmax in plain PyTorch."""
    return _ref(qkv, num_heads, dropout, draw_seed(qkv.device) if dropout else None)


BACKENDS = {
    "short": Backend("short sequences stay on chip", _short_conditions, short_attention),
    "flash": Backend(
        "scores of long sequences stay out of memory", _flash_conditions, _flash_attention
    ),
    "xformers": Backend("requested", _xformers_conditions, _xformers_attention),
    "eager": Backend("plain PyTorch runs it", lambda x: [], eager_attention),
}
DROPPING = "short", "eager"
"""Backends that support dropout. All of them drop the same weights."""


# --- Dispatch -------------------------------------------------------------------------------------


def not_supported_reasons(backend: str, inputs: Inputs) -> list[str]:
    """Return why ``backend`` does not support ``inputs``; empty if it does.

    Raises ``ValueError`` naming ``backend`` for an unknown name.

    Example::

        >>> inputs = Inputs(600, head_dim=64, dtype=torch.float64, device=torch.device("meta"))
        >>> not_supported_reasons("xformers", inputs)[0]
        'not used on the meta device'
    """
    if backend not in BACKENDS:
        raise UserError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    reasons = BACKENDS[backend].conditions(inputs)
    if inputs.device.type == "cuda" and backend != "eager":
        reasons = [gpu_unsupported_reason(inputs.device), *reasons]
    return [*dict.fromkeys(reason for reason in reasons if reason is not None)]


def select_backend(inputs: Inputs) -> tuple[str, str]:
    """Return the backend that ``auto`` selects, and the reason, also against those before it."""
    priority = ["short", "flash", "eager"]
    if device_kind(inputs.device) == "cpu" and inputs.num_tokens <= EAGER_TOKENS:
        priority = ["short", "eager"]
    passed_over: list[str] = []
    for backend in priority:
        reasons = not_supported_reasons(backend, inputs)
        if not reasons:
            break
        passed_over.append(f"not {backend}: {', '.join(reasons)}")
    return backend, "; ".join([BACKENDS[backend].merit, *passed_over])


def backend_status() -> dict[str, str]:
    """Return, for every backend, ``"available"`` and its provider, or the reasons why not.

    For a short bfloat16 sequence on the first CUDA device, or on the CPU without one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = Inputs(num_tokens=20, head_dim=64, dtype=torch.bfloat16, device=device)
    status = {}
    for backend in BACKENDS:
        provider = f", by {_flash_provider(device, 64)}" if backend == "flash" else ""
        reasons = not_supported_reasons(backend, inputs)
        status[backend] = ", ".join(reasons) or f"available{provider}"
    return status


def attention(qkv: Tensor, num_heads: int, backend: str = "auto", dropout: float = 0.0) -> Tensor:
    """Multi-head self-attention ``[B, N, D]`` of B sequences.

    ``qkv`` float ``[B, N, 3*D]``: queries, keys and values side by side, each with its heads side
    by side, as a linear layer of width ``3*D`` returns them. The scale is
    ``(D / num_heads) ** -0.5``. ``backend`` is ``auto`` (:func:`select_backend`) or one of
    ``BACKENDS``. ``dropout``, from 0 to less than 1, is the fraction of the softmax's weights
    to set to zero (:func:`~ivcl_fast.kernels.short_attention`); only ``DROPPING`` supports it.
    Raises ``ValueError`` naming the argument if a shape does not fit or the backend does not
    support the inputs, with the reasons.

    Example::

        >>> qkv = torch.nn.Linear(64, 3 * 64)(torch.randn(2, 600, 64))
        >>> attention(qkv, num_heads=4).shape
        torch.Size([2, 600, 64])
    """
    if qkv.ndim != 3 or not qkv.is_floating_point():
        raise UserError(f"qkv: {qkv.dtype} {tuple(qkv.shape)} is not a float [B, N, 3*D]")
    if num_heads < 1 or qkv.shape[2] == 0 or qkv.shape[2] % (3 * num_heads):
        raise UserError(
            f"num_heads: {num_heads} does not divide qkv's width {qkv.shape[2]} in 3 parts"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: expected a share from 0 to less than 1, got {dropout}")
    inputs = Inputs(qkv.shape[1], qkv.shape[2] // (3 * num_heads), qkv.dtype, qkv.device)
    if backend == "auto":
        backend, _ = select_backend(inputs)
        if backend != "short" and (dropout or is_transformed()):
            backend = "eager"  # only an explicit softmax has every derivative
    elif reasons := not_supported_reasons(backend, inputs):
        able = [name for name in BACKENDS if not not_supported_reasons(name, inputs)]
        raise UserError(
            f"backend: {backend!r} cannot run here: {', '.join(reasons)}; "
            f"backends that can: auto, {', '.join(able)}"
        )
    if not dropout:
        return BACKENDS[backend].run(qkv, num_heads)
    if backend not in DROPPING:
        raise UserError(
            f"dropout: backend {backend!r} has none; backends that have: auto, "
            f"{', '.join(DROPPING)}"
        )
    return BACKENDS[backend].run(qkv, num_heads, dropout)
