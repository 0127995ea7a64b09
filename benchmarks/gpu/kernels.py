"""Every kernel of a training step against the card's limits, and attention against its rivals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.gpu import timing
from benchmarks.gpu.part import Rows, Sizes, Skip
from benchmarks.race import DEVICE
from ivcl_fast import kernels as ops
from ivcl_fast.kernels._op import missing_kernel
from ivcl_fast.kernels._triton import INTERPRET
from ivcl_fast.kernels.aot_cases import cases
from ivcl_fast.kernels.launch import Launch, launch, record

FORWARD = "forward"
Attention = Callable[[Tensor, int], Tensor]


def kernels(rows: Rows, sizes: Sizes) -> None:
    """As they are started at the shapes of the training steps."""
    if DEVICE.type != "cuda" and not INTERPRET:
        raise Skip("Triton runs on a GPU, elsewhere only with TRITON_INTERPRET=1")
    if reason := missing_kernel(DEVICE):
        raise Skip(reason)
    for preset, (cfg, clips) in sizes.step.items():
        clips = min(clips, sizes.kernel_clips)
        made = partial(cases, cfg, sizes.dtype, clips, DEVICE)
        before = free_bytes()
        sets = [made()]
        most = max(2, free_bytes() // max(1, 2 * (before - free_bytes())))
        for name, first in sets[0].items():
            launches = [started(first)]
            for number, started_first in enumerate(launches[0]):
                what = {"preset": preset, "case": name, "kernel": step_name(started_first)}
                with rows.row(**what) as row:
                    row["bytes"], row["flops"] = moved(started_first), products(started_first)
                    while len(launches) < min(most, timing.input_sets(row["bytes"])):
                        if len(launches) == len(sets):
                            sets.append(made())
                        launches.append(started(sets[len(launches)][name]))
                    calls = [partial(start, own[number]) for own in launches]
                    row["seconds"] = timing.short(calls, sizes.repeats)
                    row["beyond_cache"] = row["bytes"] * len(calls) > timing.cache_bytes()


def free_bytes() -> int:
    """Of the card's memory; of a CPU's we do not ask."""
    return torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else 0


def started(call: Callable[[], object]) -> list[Launch]:
    """The launches of a call, with arguments that they can be run on again."""
    with record() as launches:
        call()
    return launches


def start(recorded: Launch) -> None:
    options = {"num_warps": recorded.num_warps, "num_stages": recorded.num_stages}
    launch(recorded.kernel, recorded.grid, *recorded.args, **options, **recorded.constexprs)


def step_name(recorded: Launch) -> str:
    """forward, backward, or what else the kernel is called."""
    return recorded.kernel.__name__.removesuffix("_kernel").strip("_") or FORWARD


def moved(recorded: Launch) -> int:
    """Bytes that have to be read or written: every tensor once; of patch rows, those in ids."""
    tensors = [x for x in recorded.args if isinstance(x, Tensor)]
    named = sum(x.numel() for x in tensors if x.dtype == torch.int64)
    return sum(
        named * x.shape[-1] if x.dtype == torch.uint8 else x.numel() * x.element_size()
        for x in tensors
    )


def products(recorded: Launch) -> int:
    """FLOPs of the matrix products that are asked for, not of padding."""
    fixed, tensors = recorded.constexprs, [x for x in recorded.args if isinstance(x, Tensor)]
    if "TOKENS" in fixed and "HEADS" in fixed:  # attention: two products, or five
        qkv = tensors[0] if step_name(recorded) == FORWARD else tensors[1]
        count = 2 if step_name(recorded) == FORWARD else 5
        return count * 2 * qkv.numel() // 3 * fixed["TOKENS"]
    rows = next((x for x in tensors if x.dtype == torch.uint8), None)
    if rows is None or not recorded.kernel.fn.__module__.endswith(".embed_patches"):
        return 0
    ids = next(x for x in tensors if x.dtype == torch.int64)
    embedded = next(x for x in tensors if x.shape[:-1] == ids.shape)
    return 2 * rows.shape[-1] * embedded.numel()


def attention(rows: Rows, sizes: Sizes) -> None:
    """Forward and backward, ours beside every other attention there is."""
    contestants = {"ours": ops.short_attention} | rivals.attention_rivals()
    slow = {name: contestants.pop(name) for name in [rivals.FLEX] if name in contestants}
    for group in (contestants, slow):  # what takes long to compile comes last
        for shape in sizes.attention:
            attend(shape, group, rows, sizes)


def attend(
    shape: tuple[int, int, int, int], contestants: dict[str, Attention], rows: Rows, sizes: Sizes
) -> None:  # fmt: skip
    """One shape: sequences, tokens, heads and their width."""
    sequences, tokens, heads, head_dim = shape
    width = heads * head_dim
    # qkv is read twice, dqkv written, the output written and its gradient read.
    num_bytes = sequences * tokens * width * 11 * sizes.dtype.itemsize
    inputs = [
        tuple(
            torch.randn(sequences, tokens, columns, dtype=sizes.dtype, device=DEVICE)
            for columns in (3 * width, width)
        )
        for _ in range(timing.input_sets(num_bytes))
    ]
    expected = through(rivals.explicit, *(x.float() for x in inputs[0]), heads)
    what = f"{sequences} x {tokens} tokens, {heads} heads of {head_dim}"
    for name, function in contestants.items():
        with rows.row(shape=what, tokens=tokens, name=name, bytes=num_bytes) as row:
            row["flops"] = 7 * 2 * sequences * tokens**2 * width
            got = through(function, *inputs[0], heads)
            row["difference"] = max(map(difference, got, expected))
            calls = [partial(through, function, *own, heads) for own in inputs]
            row["seconds"] = timing.short(calls, sizes.repeats)


def through(
    function: Attention, qkv: Tensor, gradient: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Output and gradient."""
    qkv.requires_grad_()
    out = function(qkv, heads)
    return out, torch.autograd.grad(out, qkv, gradient)[0]


def difference(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference, of the norm."""
    error = ((got.float() - expected).norm() / expected.norm()).item()
    if not math.isfinite(error):
        raise ArithmeticError("output or gradient is not finite")
    return error
