"""Benchmarks of single Triton kernels, each as a training step starts it, against the card's rates.

There is nothing to compare them with here; the tests compare their results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.aot.cases import cases
from benchmarks.benchmark import Benchmark, Setup
from benchmarks.results import Skip
from benchmarks.timing import DEVICE, Call
from ivcl_fast import IVCLConfig
from ivcl_fast.kernels import unsupported_reason
from ivcl_fast.kernels._triton import INTERPRET
from ivcl_fast.kernels.launch import Launch, record

FORWARD = "forward"


def kernel_benchmarks(
    preset: str, cfg: IVCLConfig, clips: int, dtype: torch.dtype, rounds: int
) -> Iterator[Benchmark]:
    """Every kernel of a step; sets of inputs are made as they are needed, and shared.

    Raises :class:`Skip` where Triton kernels cannot run.
    """
    if DEVICE.type != "cuda" and not INTERPRET:
        raise Skip("Triton runs on a GPU, elsewhere only with TRITON_INTERPRET=1")
    if reason := unsupported_reason(DEVICE):
        raise Skip(reason)
    make = partial(cases, cfg, dtype, clips, DEVICE)
    before = free_bytes()
    sets = [make()]
    most = max(2, free_bytes() // max(1, 2 * (before - free_bytes())))  # half of the memory
    for name, call in sets[0].items():
        for number, first in enumerate(launches_of(call)):
            moved = bytes_moved(first)
            count = min(most, timing.input_sets(moved))

            def starts(name: str = name, number: int = number, count: int = count) -> list[Call]:
                sets.extend(make() for _ in range(len(sets), count))
                return [launches_of(own[name])[number].start for own in sets[:count]]

            yield Benchmark(
                name=f"{name}, {preset}",
                implementations=(kernel_name(first),),
                setup=partial(Setup, {kernel_name(first): starts}),
                facts={
                    "bytes": moved, "flops": matrix_flops(first),
                    "beyond_cache": moved * count > timing.cache_bytes(),
                },
                rounds=rounds,
                graph=True,
            )  # fmt: skip


def free_bytes() -> int:
    """Return the free memory of the card, or 0 on a CPU, where it does not limit anything."""
    return torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else 0


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """Return the launches that a call makes, without running them."""
    with record() as launches:
        call()
    return launches


def kernel_name(recorded: Launch) -> str:
    """Return "forward", "backward", or what else the kernel is called."""
    name = recorded.kernel.__name__.removesuffix("_kernel").strip("_")
    return name.removeprefix("loop_") or FORWARD


def bytes_moved(recorded: Launch) -> int:
    """Return the least bytes to read and write: all tensors, but only the patch rows in ``ids``."""
    tensors = [x for x in recorded.args if isinstance(x, Tensor)]
    named = sum(x.numel() for x in tensors if x.dtype == torch.int64)
    return sum(
        named * x.shape[-1] if x.dtype == torch.uint8 else x.numel() * x.element_size()
        for x in tensors
    )


def matrix_flops(recorded: Launch) -> int:
    """Return the FLOPs of the matrix products asked for, without padding."""
    fixed, tensors = recorded.constexprs, [x for x in recorded.args if isinstance(x, Tensor)]
    if "TOKENS" in fixed and "HEADS" in fixed:  # attention: two products, or five
        tensors = [x for x in tensors if x.ndim]  # without the seed of dropout
        qkv = tensors[0] if kernel_name(recorded) == FORWARD else tensors[1]
        count = 2 if kernel_name(recorded) == FORWARD else 5
        return count * 2 * qkv.numel() // 3 * fixed["TOKENS"]
    rows = next((x for x in tensors if x.dtype == torch.uint8), None)
    if rows is None or not recorded.kernel.fn.__module__.endswith(".embed_patches"):
        return 0
    ids = next(x for x in tensors if x.dtype == torch.int64)
    embedded = next(x for x in tensors if x.shape[:-1] == ids.shape)
    return 2 * rows.shape[-1] * embedded.numel()
