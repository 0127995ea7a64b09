"""The ops that ``test_ops.py`` and ``test_derivatives.py`` run through one frame of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ivcl_fast import kernels
from ivcl_fast.kernels import (
    add_layer_norm,
    bias_gelu,
    embed_patches,
    mixture_loss,
    patch_loss,
    restore_tokens,
    short_attention,
    transformer_block,
)

EPS, MEAN, STD = 1e-6, 0.45, 0.225
HOW = 3.0, 0.1, 0.1
"""Background logit, weight of the spread and weight of the background in ``mixture_loss``."""


def module(name: str) -> Any:
    """The module of an op, whose name in the package is that of its public function."""
    import importlib

    return importlib.import_module(f"ivcl_fast.kernels.{name}")


class Op(NamedTuple):
    """A registered op, its reference and its public function, on equal inputs."""

    op: Any
    ref: Callable
    public: Callable
    """Takes the inputs alone."""
    inputs: Callable[..., list]
    """From a shape, a dtype and a device to tensors, numbers and None. Floats that get no gradient
    are inside a list."""
    shapes: list[tuple[int, ...]]
    """Odd and even widths, B=1, and sizes on both sides of a tile; the second one is small."""
    many: tuple[int, ...]
    """A shape with work for several threads, whose last partial sum is incomplete."""
    arguments: Callable[..., tuple] = lambda *inputs: inputs
    """From the inputs to the arguments of the op and its reference."""
    is_loss: bool = False
    """Whether the op is a mean; only the first output is tested."""
    saves: bool = False
    """Whether the outputs after the first are only for its backward pass."""

    def fused(self, *inputs: Any) -> Any:
        return self.first(self.op(*self.arguments(*inputs)))

    def plain(self, *inputs: Any) -> Any:
        return self.first(self.ref(*self.arguments(*inputs)))

    def first(self, out: Any) -> Any:
        return out[0] if self.is_loss or self.saves else out


def floats(*shapes: Any, dtype: torch.dtype, device: str) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]


def rows_and_ids(frames: int, patches: int, count: int, pixels: int, device: str) -> list[Tensor]:
    """uint8 rows of patches, and unsorted ids."""
    rows = torch.randint(256, (frames, patches, pixels), dtype=torch.uint8, device=device)
    return [rows, torch.rand(frames, patches, device=device).argsort(dim=1)[:, :count]]


def tokens(*parts: str) -> Callable[..., list]:
    """Inputs of an op on tokens: ``"x"`` has the whole shape, ``"p"`` only the width."""
    return lambda shape, **kind: floats(
        *(shape if part == "x" else shape[-1] for part in parts), **kind
    )


def embed_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    frames, patches, visible, pixels, dim = shape
    sizes = (dim, pixels), dim, (patches, dim)
    weight, *others = floats(*sizes, dtype=dtype, device=device)
    found = rows_and_ids(frames, patches, visible, pixels, device)
    return [*found, weight * pixels**-0.5, *others]


def mixture_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list:
    """What slots draw, the truth, and a background that is as bright somewhere.

    A truth that is learnt has no kernel.
    """
    frames, slots, patches, pixels = shape
    drawn = 2 * torch.randn(frames, slots, patches, 4 * pixels, dtype=dtype, device=device)
    sizes = (frames, patches, 3 * pixels), (patches, 3, pixels)
    true, background = floats(*sizes, dtype=torch.float32, device=device)
    if true.numel():
        true[0, 0, :1] = background[0, 0, 0]
    return [drawn, [true], background]


def mixture_arguments(drawn: Tensor, true: list[Tensor], background: Tensor) -> tuple:
    return drawn, true[0], background, *HOW


def patch_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    frames, patches, masked, pixels = shape
    pred = torch.randn(frames, masked, pixels, dtype=dtype, device=device)
    return [pred, *rows_and_ids(frames, patches, masked, pixels, device)]


def restore_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list:
    frames, visible, patches, slots, width = shape
    _, ids = rows_and_ids(frames, patches, visible, 0, device)
    sizes = (frames, visible, width), width, (patches, width), (frames, slots, width)
    x, *others, prefix = floats(*sizes, dtype=dtype, device=device)
    return [x, ids.sort(-1).values, *others, prefix if slots else None]


def qkv(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list:
    frames, count, heads, head_dim = shape
    size = frames, count, 3 * heads * head_dim
    return [torch.randn(size, dtype=dtype, device=device), heads]


def dropped(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list:
    return [*qkv(shape, dtype, device), 0.3, torch.tensor(-(2**62), device=device)]


def block_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list:
    """Weights of unit gain, and biases and norms that are not trivial."""
    frames, count, heads, head_dim, hidden = shape
    d = heads * head_dim
    sizes = (
        (d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (hidden, d), (hidden,),
        (d, hidden), (d,),
    )  # fmt: skip
    x, *parameters = floats((frames, count, d), *sizes, dtype=dtype, device=device)
    for parameter in parameters:
        parameter *= 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
    parameters[0] += 1
    parameters[6] += 1
    return [x, *parameters, heads]


def block_arguments(x: Tensor, *rest: Any) -> tuple:
    return x, *rest[:12], None, rest[12], EPS, x.dtype, True


NORM_SHAPES = [(1, 1), (3, 5, 12), (1, 1, 60), (3, 5, 127), (2, 17, 768), (150, 60), (1, 4096)]
PATCH_SHAPES = [
    (1, 1, 1, 3), (3, 8, 5, 27), (1, 4, 1, 27), (2, 9, 5, 60), (3, 7, 3, 127), (2, 64, 48, 192),
    (1, 6, 4, 768), (2, 3, 2, 1023), (1, 2, 1, 3072),
]  # fmt: skip
LENGTHS = [1, 12, 29, 44, 63, 64, 65, 127, 128]
HEADS = [1, 16, 24, 32, 60, 64, 127, 128]
MANY_TOKENS = 301, 17, 96
ops = torch.ops.ivcl_fast

OPS = {
    "add_layer_norm": Op(
        ops.add_layer_norm.default, module("add_layer_norm")._ref,
        add_layer_norm, tokens("x", "x", "p", "p"),
        NORM_SHAPES, MANY_TOKENS, lambda *inputs: (*inputs, EPS),
    ),
    "add_layer_norm, biased": Op(
        ops.add_layer_norm_biased.default, module("add_layer_norm")._ref_biased,
        lambda x, x_bias, *rest: add_layer_norm(x, *rest, x_bias=x_bias),
        tokens("x", "p", "x", "p", "p"),
        NORM_SHAPES, MANY_TOKENS, lambda *inputs: (*inputs, EPS),
    ),
    "layer_norm": Op(
        ops.layer_norm.default, module("add_layer_norm")._ref_norm,
        kernels.layer_norm, tokens("x", "p", "p"),
        NORM_SHAPES, MANY_TOKENS, lambda x, *p: (x, *p, EPS, x.dtype),
    ),
    "bias_gelu": Op(
        ops.bias_gelu.default, module("bias_gelu")._ref,
        bias_gelu, tokens("x", "p"),
        [(1, 1), (3, 5, 12), (1, 1, 60), (3, 5, 127), (2, 17, 768), (300, 60), (2, 1023)],
        MANY_TOKENS,
    ),
    "embed_patches": Op(
        ops.embed_patches.default, module("embed_patches")._ref,
        lambda *inputs: embed_patches(*inputs, MEAN, STD), embed_inputs,
        [
            (1, 1, 1, 3, 1), (3, 8, 5, 27, 12), (1, 4, 1, 27, 60), (2, 9, 5, 48, 127),
            (3, 64, 43, 192, 128),  # 129 rows: one more than a tile
            (2, 64, 64, 65, 130), (1, 6, 3, 75, 1023), (2, 4, 2, 768, 60), (1, 2, 2, 12, 768),
            (40, 16, 16, 12, 8),  # 640 rows: a program of the backward has several tiles
        ],
        (301, 64, 17, 192, 96),
        lambda *inputs: (*inputs, MEAN, STD, inputs[2].dtype),
    ),
    "mixture_loss": Op(
        ops.mixture_loss.default, module("mixture_loss")._ref,
        lambda *inputs: mixture_loss(*mixture_arguments(*inputs))[0], mixture_inputs,
        [
            (20, 1, 1, 1), (3, 2, 8, 3), (3, 11, 9, 16), (3, 17, 4, 33), (2, 5, 3, 64),
            (2, 2, 70, 9),
            (33, 3, 5, 4),  # one frame more than the background's gradient adds at a time
        ],
        (301, 5, 9, 17), mixture_arguments, is_loss=True,
    ),
    "patch_loss": Op(
        ops.patch_loss.default, module("patch_loss")._ref_forward,
        lambda *inputs: patch_loss(*inputs, True, MEAN, STD), patch_inputs,
        PATCH_SHAPES, (301, 64, 17, 192),
        lambda *inputs: (*inputs, True, MEAN, STD, True), is_loss=True,
    ),
    "patch_loss, raw pixels": Op(
        ops.patch_loss.default, module("patch_loss")._ref_forward,
        lambda *inputs: patch_loss(*inputs, False, MEAN, STD), patch_inputs,
        PATCH_SHAPES, (301, 64, 17, 192),
        lambda *inputs: (*inputs, False, MEAN, STD, True), is_loss=True,
    ),
    "restore_tokens": Op(
        ops.restore_tokens.default, module("restore_tokens")._ref,
        restore_tokens, restore_inputs,
        [  # frames, visible, patches, slots, width
            (1, 1, 1, 0, 1), (3, 5, 8, 2, 12), (1, 1, 1, 1, 60), (3, 4, 16, 2, 96),
            (2, 16, 64, 4, 128), (5, 9, 17, 0, 127), (2, 16, 16, 1, 768), (2, 3, 15, 3, 1023),
            # More ids than a tile; and two programs with several rows and frames each.
            (2, 65, 70, 1, 24), (17, 3, 20, 1, 24),
        ],
        (301, 17, 64, 2, 96),
    ),
    "short_attention": Op(
        ops.short_attention.default, module("short_attention")._ref,
        short_attention, qkv,
        [
            *[(3, 1, 2, 16), (3, 5, 2, 6)],
            # Frames that fill a tile and a part of the next.
            *[(64 // count + 2, count, 2, 16) for count in LENGTHS],
            *[(frames, count, heads, size)
              for frames, count, heads in ((4, 18, 1), (1, 65, 2), (1, 66, 1))
              for size in HEADS],
        ],
        (301, 17, 3, 32),
    ),
    "short_attention, dropout": Op(
        ops.short_attention.default, module("short_attention")._ref,
        short_attention, dropped,
        [
            (66, 1, 2, 16), (3, 5, 2, 6), (7, 12, 2, 16), (4, 29, 2, 24), (2, 64, 2, 60),
            (2, 65, 2, 16), (2, 66, 2, 80), (2, 127, 2, 32),
        ],
        (301, 17, 3, 32),
    ),
    "transformer_block": Op(
        ops.transformer_block.default, module("transformer_block")._ref_forward,
        lambda x, *rest: transformer_block(x, rest[:12], rest[12]), block_inputs,
        [
            (1, 1, 1, 8, 4), (3, 5, 2, 3, 7), (5, 18, 2, 16, 64), (9, 7, 3, 5, 13),
            (3, 66, 3, 32, 384), (2, 160, 4, 12, 100), (2, 12, 1, 127, 33), (40, 18, 4, 32, 512),
        ],
        (301, 17, 3, 32, 50), block_arguments, saves=True,
    ),
}  # fmt: skip
SMALL = 1
"""The place of a small shape among those of an op."""
