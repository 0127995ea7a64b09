"""Training steps that are recorded and replayed, on a stand-in for CUDA graphs, and on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ivcl_fast import IVCLConfig
from ivcl_fast.models.ivcl import pretraining_class
from ivcl_fast.models.reference import hash64
from ivcl_fast.training import loop
from ivcl_fast.training.loop import clip_seeds
from ivcl_fast.training.step_graph import WARM_UP, StepGraph
from tests.support.toy_stage import ToyLoader, curve, make_toy_stage, reconstruction_loss

CFG = IVCLConfig(
    image_size=16, num_frames=3, num_query_frames=2, embed_dim=32, num_heads=2, depth=2,
    temporal_depth=1, decoder_dim=32, decoder_heads=2, decoder_depth=1,
)  # fmt: skip


class Tape(TorchDispatchMode):
    """Records operations on the memory they touch; a replay repeats them there, as a graph's does.

    Numbers are recorded as they are; to ask a tensor for one is an error. Recording runs the
    operations, unlike CUDA's: :meth:`undo` puts back what they wrote over.
    """

    refused = torch.ops.aten._local_scalar_dense.default
    """What cannot be recorded."""

    def __init__(self):
        super().__init__()
        self.operations, self.before = [], []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is self.refused:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        for value, argument in zip(args, op._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before += [(tensor, tensor.clone()) for tensor in tree_leaves(value)]
        out = op(*args, **(kwargs or {}))
        self.operations.append((op, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def undo(self):
        for tensor, value in reversed(self.before):
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self):
        for op, args, kwargs, out in self.operations:
            again = op(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapedStep(StepGraph):
    def _run(self, inputs):
        return self._step(*inputs)

    def _record(self, inputs):
        tape = Tape()
        try:
            with tape:
                result = self._step(*inputs)
        finally:
            tape.undo()
        return tape.replay, result


@pytest.fixture
def taped(monkeypatch):
    monkeypatch.setattr(loop, "StepGraph", TapedStep)


SHAPE = 4, CFG.num_frames, CFG.num_patches, CFG.patch_dim


class Cut(ToyLoader):
    """Ends the run after 6 batches, as a kill does."""

    def epoch(self, epoch, start_batch=0):
        for number, batch in enumerate(super().epoch(epoch, start_batch)):
            if number == 6:
                raise KeyboardInterrupt
            yield batch


def pretraining(folder, device="cpu", schedule=None, objective="ivcl", **options):
    torch.manual_seed(0)
    cfg = dataclasses.replace(CFG, objective=objective)
    schedule = dict(clips=32, lr=1e-2, batch_size=4, warmup_steps=2) | (schedule or {})
    return make_toy_stage(
        folder, pretraining_class(cfg)(cfg).to(device), ToyLoader(8, *SHAPE), reconstruction_loss,
        schedule, device=torch.device(device), log=1, **options,
    )  # fmt: skip


def assert_same_run(graphed, eager, rel, rel_loss=1e-4):
    losses = [[loss for _, loss in curve(s.metrics.folder)] for s in (graphed, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=rel_loss)
    for (name, a), b in zip(
        graphed.model.named_parameters(), eager.model.parameters(), strict=True
    ):
        a, b = a.detach().cpu(), b.detach().cpu()
        if name.endswith("qkv.bias"):  # the keys' third has no true gradient: noise, amplified
            a, b = (x.view(3, -1)[[0, 2]] for x in (a, b))
        torch.testing.assert_close(a, b, rtol=rel, atol=rel)


OBJECTIVES = pytest.mark.parametrize("objective", ["ivcl", "slot_attention"])


@pytest.mark.parametrize(
    "objective, schedule, rel",
    [
        ("ivcl", {"optimizer": "muon"}, 5e-3),  # rounds to bfloat16
        ("slot_attention", {"grad_accum_steps": 2}, 1e-5),
    ],
    ids=str,
)
def test_replayed_steps_learn_the_same(tmp_path, schedule, rel, objective, taped):
    options = dict(amp=False, schedule=schedule, objective=objective)
    graphed = pretraining(tmp_path / "graph", cuda_graph=True, **options)
    eager = pretraining(tmp_path / "eager", **options)
    graphed.run()
    eager.run()
    assert_same_run(graphed, eager, rel=rel)


@pytest.mark.parametrize("first, then", [(True, False), (False, True)])
def test_a_checkpoint_of_either_kind_continues(tmp_path, first, then, taped):
    eager = pretraining(tmp_path / "eager", amp=False)
    eager.run()
    cut = pretraining(tmp_path / "cut", amp=False, cuda_graph=first, save=5)
    cut.loader = Cut(8, *SHAPE)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    rest = pretraining(tmp_path / "rest", amp=False, cuda_graph=then)
    rest.folder, rest.metrics = cut.folder, cut.metrics
    rest.run()
    assert_same_run(rest, eager, rel=1e-5)


def test_another_shape_runs_eagerly():
    """A batch that has lost a clip; the graph is for the shape that came some times in a row."""
    ran = []

    def step(x, number):
        ran.append(len(x))
        return x.sum() + number

    graph = TapedStep(step, torch.device("cpu"))
    for lengths, recorded in (([4, 4, 3, 4, 4, 4], False), ([4], True), ([4, 3, 4, 1], True)):
        for number, length in enumerate(lengths):
            x = torch.full((length, 2), float(number))
            assert graph(x, number) == x.sum() + number
        assert graph.recorded == recorded
    assert ran == [4, 4, 3, 4, 4, 4, 4, 3, 1]


def test_a_step_that_reads_a_value_runs_eagerly(caplog):
    graph = TapedStep(lambda x: x * x.sum().item(), torch.device("cpu"))
    results = [graph(torch.tensor(float(n))) for n in range(WARM_UP + 3)]
    assert results == [n * n for n in range(WARM_UP + 3)]
    assert caplog.messages == [
        "--cuda-graph: running without, operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("run_seed", [0, 3, 2**63 - 1])
def test_seeds_do_not_depend_on_the_kind_of_step(run_seed):
    ids, expected = torch.tensor([0, 5, 7]), torch.tensor(0)
    for part in (run_seed, 41, ids):
        expected = hash64(expected + part)
    for step in (41, torch.tensor(41)):
        assert torch.equal(clip_seeds(run_seed, step, ids), expected)


@pytest.mark.gpu
@OBJECTIVES
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_graphed_steps_learn_the_same_on_a_gpu(tmp_path, optimizer, amp, objective, caplog):
    options = dict(amp=amp, schedule={"optimizer": optimizer, "lr": 1e-3}, objective=objective)
    graphed = pretraining(tmp_path / "graph", "cuda", cuda_graph=True, **options)
    eager = pretraining(tmp_path / "eager", "cuda", **options)
    graphed.run()  # 8 steps, 5 of them replayed
    eager.run()
    assert not caplog.messages
    assert_same_run(graphed, eager, rel=5e-3, rel_loss=1e-2 if amp else 1e-4)


@pytest.mark.gpu
@OBJECTIVES
def test_compiled_and_checkpointed_blocks_in_a_graph(tmp_path, objective, caplog):
    options = dict(amp=True, objective=objective)
    graphed = pretraining(tmp_path / "graph", "cuda", cuda_graph=True, **options)
    graphed.model.checkpoint_blocks()
    graphed.model.compile_blocks()
    eager = pretraining(tmp_path / "eager", "cuda", **options)
    graphed.run()
    eager.run()
    assert not caplog.messages
    losses = [[loss for _, loss in curve(s.metrics.folder)] for s in (graphed, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
