"""The self-check of kernels at their first use, with a CPU as a stand-in for a Hopper GPU."""

from __future__ import annotations

import logging

import pytest
import torch

from ivcl_fast.kernels import _self_check
from tests.kernels.ops.table import OPS, module

NAMES = ("embed_patches", "short_attention, dropout")


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(_self_check, "is_checked", lambda device: True)
    monkeypatch.setattr(_self_check, "CACHE", tmp_path / "checked")


def checked(name, wrong=None):
    """The checked op, in PyTorch, whose results ``wrong`` changes, and its number of calls."""
    ref, calls = module(name.split(",")[0])._ref, []

    def kernel(*args):
        calls.append(args)
        out = ref(*args)
        return wrong(out) if wrong else out

    has_frames = [True, True, False, False, False] if "embed" in name else [True]
    return _self_check.checked(name, kernel, ref, has_frames + [False] * 4), calls


def arguments(name, frames=300):
    op = OPS[name]
    inputs = op.inputs((frames, *op.shapes[1][1:]), dtype=torch.float32, device="cpu")
    return op.arguments(*inputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_kernel_is_checked_once_for_every_shape(name, caplog):
    args, state = arguments(name), torch.get_rng_state()
    for _ in range(2):  # in this process, then from the file
        run, calls = checked(name)
        for again in (args, args, arguments(name, 2)):
            run(*again)
    assert len(calls) == 3 and len(calls[0][0]) == 300, "the file was not found"
    assert not caplog.records and len([*_self_check.CACHE.iterdir()]) == 1
    _self_check.CACHE.joinpath(next(_self_check.CACHE.iterdir())).unlink()
    run, calls = checked(name)
    torch.set_rng_state(state)
    run(*args)
    assert [len(call[0]) for call in calls] == [_self_check.FRAMES, 300]
    assert torch.equal(torch.get_rng_state(), state), "a user's random numbers would change"


@pytest.mark.parametrize("value", [0, torch.nan])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_gives_one_line(name, value, caplog):
    """Here one frame was overwritten."""
    run, _ = checked(name, lambda out: out.index_fill(0, torch.tensor([99]), value))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            run(*arguments(name))
    (record,) = caplog.records
    assert "IVCL_FAST_TRITON=0" in record.message and "\n" not in record.message
    assert name.split(",")[0] in record.message and not _self_check.CACHE.exists()
