"""What a step is predicted to take: FLOPs as counted from the sizes, bytes as counted by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.predictions.launches import StepCounter, count_step
from benchmarks.predictions.step import CANNOT_COUNT, CFG, ROWS, STEP, step_costs
from ivcl_fast.models import flops


@pytest.mark.skipif(CANNOT_COUNT, reason="needs Triton, not its interpreter")
def test_a_step():
    clips, costs = 2, step_costs(2)
    assert [*costs] == [*ROWS]
    launches = sum(part.by_op.total() for part in count_step(CFG, clips).values())
    assert sum(cost.launches for cost in costs.values()) == launches
    counted = sum(costs[row].flops for row, (part, _) in ROWS.items() if part == STEP)
    again = costs["attention"].flops // 7  # 2 products forward and 5 backward; one is not new
    assert counted - again == clips * flops.training(CFG)


def bytes_counted(name, function, *args):
    with StepCounter() as counter:
        function(*args)
    return counter.costs[name].bytes


def test_bytes_of_operations():
    a, b, c = torch.ones(2, 3), torch.ones(3, 5), torch.ones(1, 5)
    assert bytes_counted("mm", torch.mm, a, b) == 4 * (6 + 15 + 10)
    assert bytes_counted("mul_", torch.Tensor.mul_, a, 2.0) == 4 * (6 + 6)
    assert bytes_counted("copy_", torch.Tensor.copy_, b, c) == 4 * (15 + 5)
    assert bytes_counted("add", torch.add, b, c.expand(3, 5)) == 4 * (15 + 5 + 15), "broadcast"
    source, index = torch.ones(2, 5), torch.tensor([2, 0])
    assert bytes_counted("index_add", torch.index_add, b, 0, index, source) == 8 * 2 + 3 * 4 * 10
    halves = [a.bfloat16(), b.bfloat16()]
    assert bytes_counted("_foreach_copy_", torch._foreach_copy_, halves, [a, b]) == 6 * (6 + 15)
    x = torch.ones(1, 3, 3)  # copied to the result, where the product is added to it
    assert bytes_counted("baddbmm", torch.baddbmm, x, x, x) == 4 * 9 * (3 + 1 + 2)
