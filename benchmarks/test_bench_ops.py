"""Each op, forward and backward, beside what it replaces in the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import rivals
from benchmarks.conftest import race_tests
from benchmarks.race import DEVICE, Race
from benchmarks.shapes import (
    ATTENTION,
    BF16,
    CLIPS,
    PRESET,
    AttentionShape,
    draw,
    draw_ids,
    draw_rows,
)  # fmt: skip
from ivcl_fast import IVCLConfig, kernels, reference
from ivcl_fast.kernels.short_attention import max_tokens

CFG = IVCLConfig.preset(PRESET)
FRAMES, QUERIES = CLIPS * CFG.num_frames, CLIPS * CFG.num_query_frames
D, DD, N, K = CFG.embed_dim, CFG.decoder_dim, CFG.num_patches, CFG.num_keep
R, M, TOKENS = CFG.patch_dim, CFG.num_patches - CFG.num_keep, CFG.num_slots + CFG.num_keep
HALF = DEVICE.type, torch.bfloat16
Function = Callable[..., Tensor]


def forward_backward(
    functions: dict[str, Function], arguments: list
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Each function with its gradients, for one random gradient of its output."""
    wanted = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]

    def contestant(function: Function) -> Callable[[], tuple[Tensor, ...]]:
        def run() -> tuple[Tensor, ...]:
            with torch.autocast(*HALF):
                out = function(*arguments)
            return out, *torch.autograd.grad(out, wanted, gradient.to(out.dtype))

        return run

    with torch.no_grad(), torch.autocast(*HALF):
        gradient = torch.randn_like(next(iter(functions.values()))(*arguments))
    return {name: contestant(function) for name, function in functions.items()}


def agree(contestants: dict[str, Callable]) -> None:
    """Outputs and gradients of all, within what bfloat16 can differ by."""
    ours, *others = (run() for run in contestants.values())
    for other in others:
        for a, b in zip(ours, other, strict=True):
            scale = b.float().abs().max().item()
            torch.testing.assert_close(a.float(), b.float(), rtol=0.02, atol=0.02 * scale)


def op_race(name: str, arguments: Callable[[], list], **functions: Function) -> Race:
    """Ours (the first) against others, ``_`` in names shown as spaces."""
    contestants = {key.replace("_", " "): function for key, function in functions.items()}
    return Race(
        name=f"{name}, forward and backward",
        names=tuple(contestants),
        build=lambda: forward_backward(contestants, arguments()),
        check=agree,
        rounds=40,
        short=True,
    )


def attention_race(shape: AttentionShape) -> Race:
    functions = {"ours": kernels.short_attention} | rivals.attention_rivals()
    if shape.tokens > max_tokens(DEVICE):
        functions.pop("ours")
    width = 3 * shape.heads * shape.head_dim
    return Race(
        name=f"short_attention {shape}",
        names=tuple(functions),
        build=lambda: forward_backward(
            functions, [draw(shape.frames, shape.tokens, width), shape.heads]
        ),
        check=agree,
        bytes=shape.bytes,
        flops=shape.flops,
        shape=str(shape),
        rounds=40,
        short=True,
        slow=shape.slow,
    )


# --- What the ops replace, as the reference writes it ---------------------------------------------


def eager_embed(rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor) -> Tensor:
    visible = (reference.take_rows(rows, ids).float() / 255 - 0.5) / 0.5
    return F.linear(visible, weight, bias) + pos[ids]


def ours_embed(*arguments: Tensor) -> Tensor:
    return kernels.embed_patches(*arguments, 0.5, 0.5)


def eager_restore(visible: Tensor, ids: Tensor, mask_token: Tensor, pos: Tensor) -> Tensor:
    canvas = mask_token.to(visible).repeat(len(visible), len(pos), 1)
    return canvas.scatter(1, ids.unsqueeze(-1).expand_as(visible), visible) + pos


def eager_loss(pred: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """As the reference: the target of every patch, then those that are hidden."""
    x = (rows.float() / 255 - 0.5) / 0.5
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
    return ((pred - reference.take_rows(x, ids)) ** 2).mean()


def ours_loss(pred: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    return kernels.patch_loss(pred, rows, ids, True, 0.5, 0.5)


def eager_add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    total = x + residual
    return total + F.layer_norm(total, weight.shape, weight, bias, 1e-6)


def ours_add_norm(*arguments: Tensor) -> Tensor:
    total, normed = kernels.add_layer_norm(*arguments, 1e-6)
    return total + normed


def eager_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias.to(x.dtype))


RACES = [
    *map(attention_race, ATTENTION),
    op_race(
        "embed_patches",
        lambda: [
            draw_rows(CFG, FRAMES), draw_ids(CFG, FRAMES)[0],
            *(draw(*shape, dtype=torch.float32) for shape in ((D, R), (D,), (N, D))),
        ],
        ours=ours_embed, eager=eager_embed,
    ),
    op_race(
        "restore_tokens",
        lambda: [
            draw(QUERIES, K, DD, dtype=torch.float32), draw_ids(CFG, QUERIES)[0],
            *(draw(*shape, dtype=torch.float32) for shape in ((DD,), (N, DD))),
        ],
        ours=kernels.restore_tokens, eager=eager_restore,
    ),
    op_race(
        "patch_loss",
        lambda: [draw(QUERIES, M, R), draw_rows(CFG, QUERIES), draw_ids(CFG, QUERIES)[1]],
        ours=ours_loss, eager=eager_loss,
    ),
    op_race(
        "add_layer_norm",
        lambda: [
            draw(FRAMES, TOKENS, D), draw(FRAMES, TOKENS, D, dtype=torch.float32),
            *(draw(D, dtype=torch.float32) for _ in range(2)),
        ],
        ours=ours_add_norm, eager=eager_add_norm,
    ),
    op_race(
        "bias_gelu",
        lambda: [draw(FRAMES, TOKENS, 4 * D), draw(4 * D, dtype=torch.float32)],
        ours=kernels.bias_gelu, eager=eager_gelu,
    ),
]  # fmt: skip
MOVED = {  # bytes: what must be read and written once, forward and backward
    "embed_patches": FRAMES * K * (2 * R + 2 * BF16 * D),
    "restore_tokens": QUERIES * (2 * K + 2 * N) * DD * 4,
    "patch_loss": QUERIES * M * R * (1 + 4 * BF16),
    "add_layer_norm": FRAMES * TOKENS * D * (4 * BF16 + 5 * 4),
    "bias_gelu": FRAMES * TOKENS * 4 * D * 5 * BF16,
}
for race in RACES:
    race.bytes = race.bytes or MOVED.get(race.name.partition(",")[0], 0)
    race.shape = race.shape or f"{PRESET}, {CLIPS} clips"


@race_tests(RACES)
def test_op(race, contestant, replay, run_race):
    run_race(race, contestant, replay)
