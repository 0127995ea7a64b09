"""Masks equal the reference's bit for bit, and are uniform and independent of each other."""

from __future__ import annotations

import math

import pytest
import torch

from ivcl_fast import reference
from ivcl_fast.kernels import hash_seeds, sample_masks
from ivcl_fast.kernels._random import hashes
from tests.kernels.ops.conftest import INTERPRET

op = torch.ops.ivcl_fast.sample_masks.default
stream_op = torch.ops.ivcl_fast.hash_seeds.default
FRAMES = 20_000
SIZES = [(1, 0), (1, 1), (2, 1), (16, 8), (16, 16), (64, 16), (65, 3), (196, 49)]
SIZES += [] if INTERPRET else [(1000, 7)]  # where the interpreter compares 1024 with 1000 numbers
EXTREMES = torch.tensor([[0, -1, 1, 2**63 - 1], [-(2**63), 2**32, -(2**31), 2]])
statistical = pytest.mark.skipif(
    INTERPRET, reason="equal bit for bit to what is tested without the interpreter, and slow in it"
)
KNOWN_KEEP = [[[2, 4, 6]], [[3, 4, 7]]]  # of seeds 0 and 1, 3 of 8 patches


def seeds(*shape, device="cpu"):
    return torch.randint(-(2**63), 2**63 - 1, shape, device=device)


def included(ids, num_patches):
    """float64 ``[F, N]``: 1 where the patch is kept."""
    return torch.zeros(len(ids), num_patches, dtype=torch.float64).scatter(1, ids, 1)


@pytest.mark.parametrize(("num_patches", "num_keep"), SIZES)
def test_equals_the_reference(num_patches, num_keep, device):
    for seed in (seeds(2, 3, device=device), EXTREMES.to(device)):
        expected = reference.sample_masks(seed, num_patches, num_keep)
        for got, want in zip(op(seed, num_patches, num_keep), expected, strict=True):
            assert got.dtype == torch.int64 and torch.equal(got, want)


@pytest.mark.parametrize("count", [1, 17, 300])
def test_streams_equal_the_reference(count, device):
    """Also the op itself, which a CPU takes only in the interpreter, and of no seeds."""
    for seed in (EXTREMES, seeds(70), seeds(2, 0)):
        expected = reference.stream(seed, count).to(device)
        for run in (hash_seeds, stream_op):
            found = run(seed.to(device), count)
            assert found.shape == expected.shape and torch.equal(found, expected)
    torch.library.opcheck(stream_op, (seeds(3, device=device), count))


def test_known_masks(device):
    """These are fixed: no machine or version may sample others."""
    keep, mask = sample_masks(torch.tensor([[0], [1]], device=device), 8, 3)
    assert keep.tolist() == KNOWN_KEEP
    assert mask.tolist() == [[sorted({*range(8)} - {*ids[0]})] for ids in KNOWN_KEEP]


@statistical
@pytest.mark.parametrize("neighbour", ["next seed", "next frame of a clip", "one bit away"])
def test_masks_of_neighbours_are_independent(neighbour):
    base = torch.arange(FRAMES) * 2
    if neighbour == "next frame of a clip":
        first, second = hashes(base, 2).unbind(-1)
    else:
        first, second = base, base + 1 if neighbour == "next seed" else base ^ (1 << 40)
    keep = [included(sample_masks(seed, 64, 16)[0], 64) for seed in (first, second)]
    # Overlap of two independent masks: hypergeometric, mean n K / N.
    overlap = (keep[0] * keep[1]).sum(1)
    mean = 16 * 16 / 64
    variance = mean * (1 - 16 / 64) * (64 - 16) / 63
    assert abs(overlap.mean() - mean) < 5 * math.sqrt(variance / FRAMES)
    # And of each patch with itself: 64 correlations, each nearly normal with 1 / sqrt(F).
    centred = [k - 16 / 64 for k in keep]
    correlation = (centred[0] * centred[1]).mean(0) / (0.25 * 0.75)
    assert correlation.abs().max() < 5 / math.sqrt(FRAMES)


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_fullgraph_and_no_recompile_across_seeds(device):
    compiled = torch.compile(lambda seed: sample_masks(hashes(seed, 4), 16, 4), fullgraph=True)
    for stance in ("default", "fail_on_recompile", "fail_on_recompile"):
        seed = seeds(3, device=device)
        with torch.compiler.set_stance(stance):
            got = compiled(seed)
        for a, b in zip(got, reference.sample_masks(hashes(seed, 4), 16, 4), strict=True):
            assert torch.equal(a, b)
