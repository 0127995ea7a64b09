"""Accelerated models that are copied, compiled, or wrapped for several processes."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import ivcl_fast
from ivcl_fast import accelerate, reference, restore
from ivcl_fast.kernels import dispatches
from tests.models.accelerate.test_accelerate import CFG, close, images, vit
from tests.models.test_model import SEED, video
from tests.support.marks import needs_kernels


@pytest.mark.parametrize("build", [vit, lambda: reference.IVCLClassifier(CFG, 3)])
def test_copies(build):
    fast = build()
    x = images() if isinstance(fast, VisionTransformer) else video()
    expected = fast(x)
    accelerate(fast)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert [type(a) for a in twin.modules()] == [type(a) for a in fast.modules()]
        close(twin(x), expected)
        restore(twin)
        assert torch.equal(twin(x), expected)
        close(fast(x), expected)  # the original stays accelerated
    plain = build()
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())


def test_copies_of_compiled_blocks_have_weights_of_their_own():
    fast, x = vit().eval(), images()
    expected = fast(x).detach()
    accelerate(fast)
    for block in fast.blocks:
        block.compile(backend="eager")
    close(fast(x), expected)
    twins = copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    for twin in twins:
        close(twin(x), expected)


@needs_kernels
def test_blocks_that_are_compiled_afterwards_stay_fused():
    fast = vit().eval()
    accelerate(fast)

    def calls() -> Counter:
        before = dispatches()
        fast(images())
        return dispatches() - before

    expected = calls()
    for block in fast.blocks:
        block.compile(backend="eager")
    assert calls() == expected and expected.total()


@pytest.mark.parametrize("first", ["accelerate", "compile"])
def test_compiled(first):
    fast = reference.IVCLClassifier(CFG, 3)
    expected = fast(video())
    compiled = torch.compile(fast, backend="eager")
    if first == "compile":
        compiled(video())
    report = accelerate(compiled)
    assert type(fast) is ivcl_fast.IVCLClassifier and report.replaced
    close(compiled(video()), expected)
    restore(compiled)
    assert type(fast) is reference.IVCLClassifier
    close(compiled(video()), expected)


def test_data_parallel(tmp_path):
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        plain = reference.IVCL(CFG)
        expected = plain(video(), seed=SEED).pred
        wrapped = DistributedDataParallel(plain)
        assert "module.decoder" in accelerate(wrapped).replaced
        out = wrapped(video(), seed=SEED)
        close(out.pred, expected)
        out.loss.backward()
        assert all(p.grad is not None for p in plain.parameters())
        restore(wrapped)
        assert torch.equal(wrapped(video(), seed=SEED).pred, expected)
    finally:
        torch.distributed.destroy_process_group()
