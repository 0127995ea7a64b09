"""Benchmarks of the ops, forward and backward, against the code that they replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baselines
from benchmarks.aot.cases import OBJECT_SLOTS
from benchmarks.measure import BF16, DEVICE, DTYPE, Benchmark, Call, Setup, input_sets
from benchmarks.results import require
from benchmarks.sizes import BATCHES, ON_GPU, Batch
from ivcl_fast import IVCLConfig, kernels, reference, slot_autoencoder
from ivcl_fast.kernels.short_attention import max_tokens

Function = Callable[..., Tensor]
ROUNDS = 20 if ON_GPU else 40
SIZE = DTYPE.itemsize
DTYPE_NAME = str(DTYPE).removeprefix("torch.")


def draw(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """Return random numbers that require a gradient."""
    return torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=True)


def draw_rows(cfg: IVCLConfig, frames: int) -> Tensor:
    """Return random patch rows, uint8 ``[frames, N, 3*P*P]``."""
    shape = frames, cfg.num_patches, cfg.patch_dim
    return torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)


def draw_ids(cfg: IVCLConfig, frames: int) -> tuple[Tensor, Tensor]:
    """Return random ids of the visible and the masked patches of every frame."""
    seeds = torch.arange(frames, device=DEVICE)
    return kernels.sample_masks(seeds, cfg.num_patches, cfg.num_keep)


# --- Forward and backward as one call -------------------------------------------------------------


def with_gradients(
    function: Function, arguments: Sequence[Any], gradient: Tensor, bf16: bool = BF16
) -> tuple[Tensor, ...]:
    """Return the output of a function, and its gradients for ``gradient`` of the output."""
    inputs = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
        out = function(*arguments)
    return out, *torch.autograd.grad(out, inputs, gradient.to(out.dtype))


def forward_backward(
    functions: dict[str, Function], plain: Function, arguments: Callable[[], list], sets: int
) -> Setup:
    """Set up ``functions`` on ``sets`` of inputs; ``plain`` in float32 gives expected results."""
    inputs = [arguments() for _ in range(sets)]
    exact = [
        a.detach().float().requires_grad_() if isinstance(a, Tensor) and a.requires_grad else a
        for a in inputs[0]
    ]
    with torch.no_grad():
        gradient = torch.randn_like(plain(*exact)).to(DTYPE)

    def calls(function: Function) -> list[Call]:
        return [partial(with_gradients, function, own, gradient) for own in inputs]

    return Setup(
        {name: partial(calls, function) for name, function in functions.items()},
        expected=with_gradients(plain, exact, gradient, bf16=False),
    )


# --- Attention ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionShape:
    """Shape of a batch of sequences for attention."""

    frames: int
    tokens: int
    heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.tokens} tokens, {self.heads} heads of {self.head_dim}"

    @property
    def flops(self) -> int:
        """FLOPs of two matrix products forward and five backward."""
        return 7 * 2 * self.frames * self.heads * self.tokens**2 * self.head_dim

    @property
    def bytes(self) -> int:
        """Bytes: qkv read twice, its gradient written; the output written, its gradient read."""
        return SIZE * (3 * 3 + 2) * self.frames * self.tokens * self.heads * self.head_dim


ON_CPU_SHAPES = [
    *((128, 12, 12, 64), (77, 20, 12, 64), (35, 44, 12, 64)),
    *((128, 18, 4, 32), (64, 66, 3, 32), (8, 160, 4, 32)),  # tiny: encoder, decoder, temporal
]
ON_GPU_SHAPES = [
    *((2048, 12, 12, 64), (256, 72, 12, 64)),  # base64: encoder, temporal transformer,
    *((256, 68, 8, 64), (704, 68, 12, 64)),  # decoder, and the encoder in finetuning
    (2048, 18, 4, 32),
    *((24576 // tokens, tokens, 12, 64) for tokens in (16, 20, 32, 44, 64, 96, 128, 160, 200)),
]
ATTENTION = [AttentionShape(*shape) for shape in (ON_GPU_SHAPES if ON_GPU else ON_CPU_SHAPES)]


def attention_benchmark(shape: AttentionShape) -> Benchmark:
    """Benchmark all attentions; ours is left out if sequences are too long."""
    functions = {"ours": kernels.short_attention, **baselines.attentions()}
    if shape.tokens > max_tokens(DEVICE):
        functions = {name: function for name, function in functions.items() if name != "ours"}
    width = 3 * shape.heads * shape.head_dim

    def setup() -> Setup:
        return forward_backward(
            functions,
            baselines.explicit_softmax,
            lambda: [draw(shape.frames, shape.tokens, width), shape.heads],
            input_sets(shape.bytes),
        )

    facts = {
        "shape": str(shape), "dtype": DTYPE_NAME, "tokens": shape.tokens, "bytes": shape.bytes,
        "flops": shape.flops,
    }  # fmt: skip
    return Benchmark(
        name=f"short_attention {shape}",
        implementations=tuple(functions),
        setup=setup,
        facts=facts,
        rounds=ROUNDS,
        graph=True,
    )


# --- The other ops: what the reference does, and the op in its place ------------------------------


def plain_embed(rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor) -> Tensor:
    visible = (reference.take_rows(rows, ids).float() / 255 - 0.5) / 0.5
    return F.linear(visible, weight, bias) + pos[ids]


def plain_restore(visible: Tensor, ids: Tensor, mask_token: Tensor, pos: Tensor) -> Tensor:
    canvas = mask_token.to(visible).repeat(len(visible), len(pos), 1)
    return canvas.scatter(1, ids.unsqueeze(-1).expand_as(visible), visible) + pos


def plain_loss(pred: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Like the reference: normalise the pixels of every patch, then select the masked patches."""
    x = (rows.float() / 255 - 0.5) / 0.5
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
    return ((pred - reference.take_rows(x, ids)) ** 2).mean()


def plain_add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    total = x + residual
    return total + F.layer_norm(total, weight.shape, weight, bias, 1e-6)


def liger_add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of Liger-Kernel; skipped if it is not installed."""
    require("liger_kernel")
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    total = x + residual
    return total + LigerLayerNormFunction.apply(total, weight, bias, 1e-6)


def our_add_norm(op: Callable[..., tuple[Tensor, Tensor]], *arguments: Tensor) -> Tensor:
    total, normed = op(*arguments, 1e-6)
    return total + normed


def our_mixture(drawn: Tensor, true: Tensor, background: Tensor) -> Tensor:
    return kernels.mixture_loss(
        drawn, true, background, slot_autoencoder.BACKGROUND_LOGIT,
        slot_autoencoder.SPREAD_WEIGHT, slot_autoencoder.BACKGROUND_WEIGHT,
    )[0]  # fmt: skip


def plain_mixture(drawn: Tensor, true: Tensor, background: Tensor) -> Tensor:
    """Like :class:`~ivcl_fast.slot_autoencoder.MixtureDecoder`."""
    decoder = SimpleNamespace(background=background, channels=3)
    return slot_autoencoder.MixtureDecoder.mix(decoder, drawn, true).loss


def plain_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias.to(x.dtype))


def op_benchmark(
    name: str,
    ours: Function,
    plain: Function,
    arguments: Callable[[], list],
    moved: int,
    rivals: dict[str, Function],
) -> Benchmark:
    """Benchmark an op against plain PyTorch and ``rivals`` on a GPU.

    ``moved``: bytes read and written by both passes.
    """
    functions = {"ours": ours, "eager": plain}
    if ON_GPU:
        functions |= {"eager, compiled": torch.compile(plain, dynamic=False), **rivals}
    return Benchmark(
        name=f"{name}, forward and backward",
        implementations=tuple(functions),
        setup=lambda: forward_backward(functions, plain, arguments, input_sets(moved)),
        facts={"dtype": DTYPE_NAME, "bytes": moved},
        rounds=ROUNDS,
        graph=True,
    )


def op_benchmarks(batch: Batch, where: str = "") -> list[Benchmark]:
    """Return benchmarks of every op but attention at a step's sizes; ``where``: name suffix."""
    cfg, clips, _ = batch
    frames, queries = clips * cfg.num_frames, clips * cfg.num_query_frames
    width, decoder_width, patches = cfg.embed_dim, cfg.decoder_dim, cfg.num_patches
    kept, masked, pixels = cfg.num_keep, cfg.num_patches - cfg.num_keep, cfg.patch_dim
    tokens, hidden = cfg.num_slots + cfg.num_keep, int(cfg.embed_dim * cfg.mlp_ratio)
    draw32 = partial(draw, dtype=torch.float32)

    def op(name: str, *arguments: Any, moved: int, **rivals: Function) -> Benchmark:
        return op_benchmark(name + where, *arguments, moved=moved, rivals=rivals)

    return [
        op(
            "embed_patches", partial(kernels.embed_patches, mean=0.5, std=0.5), plain_embed,
            lambda: [
                draw_rows(cfg, frames), draw_ids(cfg, frames)[0],
                draw32(width, pixels), draw32(width), draw32(patches, width),
            ],
            moved=frames * kept * (2 * pixels + 2 * SIZE * width),
        ),
        op(
            "restore_tokens", kernels.restore_tokens, plain_restore,
            lambda: [
                draw32(queries, kept, decoder_width), draw_ids(cfg, queries)[0],
                draw32(decoder_width), draw32(patches, decoder_width),
            ],
            moved=queries * (2 * kept + 2 * patches) * decoder_width * 4,
        ),
        op(
            "patch_loss", partial(kernels.patch_loss, norm_pix=True, mean=0.5, std=0.5),
            plain_loss,
            lambda: [
                draw(queries, masked, pixels), draw_rows(cfg, queries), draw_ids(cfg, queries)[1],
            ],
            moved=queries * masked * pixels * (1 + 4 * SIZE),
        ),
        op(
            "mixture_loss", our_mixture, plain_mixture,
            lambda: [
                draw(frames, OBJECT_SLOTS, patches, 4 * pixels // 3),
                torch.randn(frames, patches, pixels, device=DEVICE),
                draw32(patches, 3, pixels // 3),
            ],
            # Per pixel: the predictions twice, and their gradient; shares, mixture and truth
            # twice; and the truth once more.
            moved=frames * patches * pixels // 3 * (OBJECT_SLOTS * (12 * SIZE + 8) + 68),
        ),
        op(
            "add_layer_norm", partial(our_add_norm, kernels.add_layer_norm), plain_add_norm,
            lambda: [
                draw(frames, tokens, width), draw32(frames, tokens, width),
                draw32(width), draw32(width),
            ],
            moved=frames * tokens * width * (4 * SIZE + 5 * 4),
            Liger=liger_add_norm,
        ),
        op(
            "bias_gelu", kernels.bias_gelu, plain_gelu,
            lambda: [draw(frames, tokens, hidden), draw32(hidden)],
            moved=frames * tokens * hidden * 5 * SIZE,
        ),
    ]  # fmt: skip


def benchmarks() -> list[Benchmark]:
    """Return all benchmarks of ops; on a GPU, at the sizes of both video models."""
    batches = [*BATCHES.items()][: 2 if ON_GPU else 1]
    by_model = (
        op_benchmarks(batch, f", {name}" if len(batches) > 1 else "") for name, batch in batches
    )
    return [*map(attention_benchmark, ATTENTION), *chain(*by_model)]
