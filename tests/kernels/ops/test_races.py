"""Races: many runs of every kernel that multiplies matrices, over more programs than fit at once.

No kernel uses atomics, so every run must give the same bits. Then every element is compared with
``_ref``. A race that a compiler has made may appear only with many resident programs, so the grid
is beyond one wave.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from tests.kernels.ops.conftest import INTERPRET
from tests.kernels.ops.table import OPS
from tests.kernels.ops.test_ops import bits
from tests.support.numerics import check_op

RUNS = 25


class Case(NamedTuple):
    """An op, the number of frames, and the other sizes."""

    op: str
    frames: int
    shape: tuple[int, ...]


CASES = [
    Case("embed_patches", 1024, (64, 16, 192, 768)),
    Case("embed_patches", 96, (196, 49, 768, 768)),
    *(
        Case("short_attention", frames, shape)
        for frames, shape in (
            (2048, (12, 12, 64)), (1024, (44, 12, 64)), (512, (64, 12, 64)), (512, (68, 8, 64)),
            (512, (72, 12, 64)), (384, (128, 12, 64)), (1024, (68, 3, 32)), (384, (66, 4, 128)),
        )
    ),
    Case("short_attention, dropout", 1024, (29, 12, 64)),
    Case("short_attention, dropout", 512, (72, 12, 64)),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_run_is_equal_and_every_element_right(case, dtype):
    op = OPS[case.op]
    inputs = op.inputs((case.frames, *case.shape), dtype=dtype, device="cuda")
    first = bits(case.op, inputs)
    for number in range(1, RUNS):
        for at, (a, b) in enumerate(zip(bits(case.op, inputs), first, strict=True)):
            assert torch.equal(a, b), f"run {number}, tensor {at}: {(a != b).sum()} elements differ"
    check_op(op.fused, op.plain, inputs)


@pytest.mark.skipif(not INTERPRET, reason="on a CPU, the kernels run in the interpreter alone")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.op.startswith("short_attention")], ids=str
)
def test_every_element_with_one_head_in_the_interpreter(case):
    """Which has no races: one program runs after the other."""
    op, (tokens, _, columns) = OPS[case.op], case.shape
    check_op(op.fused, op.plain, op.inputs((2, tokens, 1, columns), torch.float32, "cpu"))
