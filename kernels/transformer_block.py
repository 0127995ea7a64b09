"""``transformer_block``: a whole pre-norm ViT block on a CPU, one op forward and one backward.

    a = x + Attention(LayerNorm1(x) Wqkv^T + bqkv) Wproj^T + bproj
    u = LayerNorm2(a) W1^T + b1,   y = a + GELU(u) W2^T + b2

A task is a few whole sequences. Their values stay in a core's caches from the first norm to the
last sum, while separate ops write the results of a whole batch to memory and read them again. Each
call packs every weight once for the CPU's products; biases, GELU and residual sums are applied to a
product's sums in registers.

Saved for backward: x, a, u, and qkv beside the attention's output. Norms, GELU(u) and the softmax
are recomputed, which is faster than reading them. With g = GELU'(u) and LN' the gradient of a norm,

    du = (dy W2) * g,                  da = dy + LN2'(du W1),
    dqkv = Attention'(da Wproj),       dx = da + LN1'(dqkv Wqkv),

and each weight's gradient is a product over tokens, dW = dout^T in. These are summed in float32
over groups of tasks, whose number depends only on sizes, and the groups are added in order, so the
bits are the same for any number of threads.

``index`` selects the tokens that are processed after attention, for the last block of a stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _ext
from ._autograd import is_transformed, vjp
from ._op import autocast_dtype, device_kind, empty_contiguous, register
from .short_attention import MAX_HEAD_DIM
from .short_attention import _ref as _ref_attention

NAMES = (
    "norm1_weight", "norm1_bias", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias",
    "norm2_weight", "norm2_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias",
)  # fmt: skip
"""The parameters, in the order of the op's arguments."""
MAX_TOKENS = 512
MAX_WIDTH = 192
"""Largest width at which one op trains faster than separate ops, which take 1.3 times as long at
128, 1.0 at 192, 0.93 to 1.03 at 256 and 0.83 at 384 (float32, AVX2)."""


def _ref(
    x: Tensor, n1w: Tensor, n1b: Tensor, qkv_w: Tensor, qkv_b: Tensor, proj_w: Tensor,
    proj_b: Tensor, n2w: Tensor, n2b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor,
    fc2_b: Tensor, index: Tensor | None, num_heads: int, eps: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else dtype

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps).to(dtype)

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight.to(dtype), bias.to(dtype))

    attention = _ref_attention(linear(norm(x, n1w, n1b), qkv_w, qkv_b), num_heads)
    if index is not None:
        attention, x = (
            t.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)
            for t in (attention, x)
        )
    x = x + linear(attention, proj_w, proj_b).to(x.dtype)
    hidden = linear(norm(x, n2w, n2b), fc1_w, fc1_b)
    return x + linear(F.gelu(hidden), fc2_w, fc2_b).to(x.dtype)


def _row_stride(cols: int) -> int:
    """Stride of the rows that are kept for backward (``csrc/transformer_block.h``)."""
    return ((cols + 47) // 32 | 1) * 32


def _fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Outputs of the op: the block's, then the tensors for backward, empty unless ``keep``."""
    *parameters, index, _heads, _eps, dtype, keep = args
    tokens, width = x.shape[0] * x.shape[1], x.shape[2]
    shape = x.shape if index is None else (*index.shape, width)
    rows = tokens if index is None else index.numel()
    return (
        x.new_empty(shape),
        x.new_empty(rows if keep else 0, width),
        x.new_empty(tokens if keep else 0, _row_stride(4 * width), dtype=dtype),
        x.new_empty(
            rows if keep else 0, _row_stride(parameters[NAMES.index("fc1_weight")].shape[0]),
            dtype=dtype,
        ),
    )  # fmt: skip


def _ref_forward(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _ref(x, *args[:-1]), *(kept.zero_() for kept in _fake(x, *args)[1:])


def _ref_backward(dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *inputs, _middle, _attended, _hidden, num_heads, eps, dtype = args
    dx, *grads = vjp(_ref, (x, *inputs, num_heads, eps, dtype), dy)
    return dx, torch.cat([grad.flatten() for grad in grads])


_SIZES = "D", "D", "3D D", "3D", "D D", "D", "D", "D", "H D", "H", "D H", "D"
_RULES = {"x": "F N D"} | dict(zip(NAMES, _SIZES, strict=True))
_PARAMETERS = ", ".join(f"Tensor {name}" for name in NAMES)

_backward_op = register(
    f"transformer_block_backward(Tensor dy, Tensor x, {_PARAMETERS}, Tensor? index, "
    "Tensor middle, Tensor attended, Tensor hidden, int num_heads, float eps, ScalarType dtype) "
    "-> (Tensor, Tensor)",
    ref=_ref_backward,
    triton=None,
    arguments={"dy": "* D"} | _RULES | {
        "index": "int64 *", "middle": "R D", "attended": "T A", "hidden": "R B"
    },
    fake=lambda dy, x, *args: (
        empty_contiguous(x), args[0].new_empty(sum(p.numel() for p in args[: len(NAMES)]))
    ),
    is_backward=True,
)  # fmt: skip


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, num_heads, eps, dtype, _keep = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.options = num_heads, eps, dtype


def _autograd(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * (1 + len(NAMES))
    saved = ctx.saved_tensors
    dx, flat = _backward_op(dy, *saved, *ctx.options)
    parameters = saved[1 : 1 + len(NAMES)]
    grads = flat.split([p.numel() for p in parameters])
    return dx, *(grad.view(p.shape) for grad, p in zip(grads, parameters, strict=True))


_op = register(
    f"transformer_block(Tensor x, {_PARAMETERS}, Tensor? index, int num_heads, float eps, "
    "ScalarType dtype, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    ref=_ref_forward,
    triton=None,
    arguments=_RULES | {"index": "int64 *"},
    fake=_fake,
    setup_context=_setup_context,
    backward=_autograd,
)


def unsupported_reason(
    x: Tensor, parameters: Sequence[Tensor], num_heads: int, dtype: torch.dtype
) -> str | None:
    """Return why the op does not support a block on ``x`` ``[F, N, D]``, or None if it does."""
    if (kind := device_kind(x.device)) != "cpu":
        return f"the op is for CPUs, not for the {kind} device"
    if _ext.MISSING is not None:
        return _ext.MISSING
    if is_transformed():
        return "torch.func transforms the separate ops"
    dtypes = {p.dtype for p in parameters}
    if len(dtypes) > 1 or not {x.dtype, dtype, *dtypes} <= {*_ext.DTYPES}:
        return f"no kernel for {x.dtype} computed in {dtype}"
    if x.dtype == torch.bfloat16 != dtype:
        return "products of more precision than the residual stream"
    _, tokens, width = x.shape
    if not 1 <= tokens <= MAX_TOKENS:
        return f"{tokens} tokens are not 1 to {MAX_TOKENS}"
    if width > MAX_WIDTH:
        return f"a width above {MAX_WIDTH}, where separate products are faster"
    if width // num_heads > MAX_HEAD_DIM:
        return f"heads of more than {MAX_HEAD_DIM} columns"
    return None


def transformer_block(
    x: Tensor,
    parameters: Sequence[Tensor],
    num_heads: int,
    eps: float = 1e-6,
    index: Tensor | None = None,
) -> Tensor:
    """A pre-norm ViT block: attention and an MLP with exact GELU, each added to ``x``.

    ``x`` float ``[F, N, D]``: F sequences of N tokens. ``parameters``: the weights and biases of
    norm1, qkv, proj, norm2, fc1 and fc2 (:data:`NAMES`), with the shapes of ``nn.LayerNorm`` and
    ``nn.Linear``: qkv ``[3*D, D]``, queries, keys and values side by side, each with its heads side
    by side; fc1 ``[H, D]``. ``index``, int64 of any shape: the tokens, f * N + n, to return;
    only these pass the projection and the MLP.

    Returns ``[F, N, D]``, or ``[*index.shape, D]``, of ``x``'s dtype. Products use autocast's
    dtype if it is on, else the weights' dtype, with float32 sums.
    Raises ``ValueError`` naming the argument that does not fit.

    Example::

        >>> from ivcl_fast.reference import Block
        >>> block = Block(dim=128, num_heads=4, mlp_ratio=4.0)
        >>> y = transformer_block(torch.randn(8, 18, 128), [*block.parameters()], num_heads=4)
    """
    if len(parameters) != len(NAMES):
        raise ValueError(f"parameters: expected {len(NAMES)}, got {len(parameters)}")
    if x.ndim != 3 or num_heads < 1 or x.shape[2] % num_heads:
        raise ValueError(f"x: expected [F, N, {num_heads} * d], got {tuple(x.shape)}")
    dtype = autocast_dtype(x.device) or parameters[2].dtype
    if unsupported_reason(x, parameters, num_heads, dtype):
        return _ref(x, *parameters, index, num_heads, eps, dtype)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
    return _op(x, *parameters, index, num_heads, eps, dtype, keep)[0]
