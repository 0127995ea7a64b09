"""How benchmarks measure: wrong results get no time, and failures are kept as rows."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import Benchmark, ParityError, Setup, check_parity, measure
from benchmarks.results import Skip

EXPECTED = torch.linspace(-1, 1, 200).view(10, 20)


def no_kernel():
    raise Skip("Triton cannot be imported")


def broken():
    raise RuntimeError("CUDA error: an illegal memory access\nand more")


def too_large():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


BENCHMARK = Benchmark(
    "some op", ("ours", "eager", "wrong", "absent", "broken", "large"),
    lambda: Setup(
        {
            "ours": lambda: [lambda: (EXPECTED + 1e-3, EXPECTED.sum())],
            "eager": lambda: [lambda: (EXPECTED, EXPECTED.sum())],
            "wrong": lambda: [lambda: (EXPECTED.flip(0), EXPECTED.sum())], "absent": no_kernel,
            "broken": broken, "large": too_large,
        },
        (EXPECTED, EXPECTED.sum()),
    ),
    rounds=4, facts={"bytes": 800},
)  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_wrong_and_broken_implementations_are_not_timed(together):
    rows = {}
    measure(BENCHMARK, lambda row: rows.update({row["name"]: row}), together)
    assert {name for name, row in rows.items() if "seconds" in row} == {"ours", "eager"}
    assert len(rows["ours"]["times"]) == 4 and rows["ours"]["bytes"] == 800
    assert rows["ours"]["difference"] == pytest.approx(1e-3, rel=1)
    assert "ParityError" in rows["wrong"]["error"]
    assert rows["absent"]["skipped"] == "Triton cannot be imported"
    assert rows["broken"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert "memory" in rows["large"]["skipped"]


@pytest.mark.parametrize(
    "got",
    [
        EXPECTED * 1.03,
        EXPECTED.index_fill(0, torch.tensor([3]), 0),  # a row that no program wrote
        EXPECTED.where(torch.arange(200).view(10, 20) != 7, EXPECTED + 0.1),  # one element
        EXPECTED.where(EXPECTED < 1, torch.nan),
        EXPECTED[:, :19],
    ],
)
def test_parity_finds_what_is_wrong(got):
    with pytest.raises(ParityError):
        check_parity([EXPECTED, got], [EXPECTED, EXPECTED], 0.02)
    assert check_parity(EXPECTED.bfloat16(), EXPECTED, 0.02) < 0.01
    assert check_parity(EXPECTED, EXPECTED, 0) == 0
