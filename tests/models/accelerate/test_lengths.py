"""A fused forward pass is compared with the module's own at every length before it is used."""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from ivcl_fast import accelerate
from ivcl_fast.kernels import dispatches
from ivcl_fast.models.accelerate import lengths
from ivcl_fast.models.accelerate.swap import REPLACEMENT
from ivcl_fast.models.accelerate.trial import Trial
from tests.support.marks import needs_kernels

pytestmark = needs_kernels
ODD = 23


class Odd(nn.Module):
    """An MLP that computes something else at one length alone, which no first trial has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)

    def forward(self, x):
        y = self.fc2(self.act(self.fc1(x)))
        return y.flip(-1) if x.shape[1] == ODD else y


def tokens(length, batch=2):
    return torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(length))


def fused_ops(call):
    before = dispatches()
    out = call()
    return out, (dispatches() - before).total()


def pair(build):
    torch.manual_seed(0)
    plain = build()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    return plain, fast


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("wrap", ["eager", "compiled", "autocast"])
def test_a_difference_at_one_length_alone(wrap, grad):
    plain, fast = pair(Odd)
    forward = fast
    if wrap == "compiled":
        torch._dynamo.reset()  # all modules of a class share the limit of recompilations
        forward = torch.compile(fast, backend="eager", fullgraph=True, dynamic=False)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", enabled=wrap == "autocast"):
        _, calls = fused_ops(lambda: forward(tokens(ODD + 1)))
        assert calls == 1
        with pytest.warns(UserWarning, match=r"itself \(Odd\).*23 tokens.*something else"):
            out = forward(tokens(ODD))
        assert torch.equal(out, plain(tokens(ODD)))
        with warnings.catch_warnings(action="error"):
            _, calls = fused_ops(lambda: fast(tokens(ODD + 1)))
        assert calls == 0  # it is an imposter, at any length


class OddForm(Odd):
    """At one length its output is a tuple, which the fused one's is at none."""

    def forward(self, x):
        y = self.fc2(self.act(self.fc1(x)))
        return (y, None) if x.shape[1] == ODD else y


def test_an_output_of_another_form_at_one_length_alone():
    plain, fast = pair(OddForm)
    assert fused_ops(lambda: fast(tokens(ODD + 1)))[1] == 1
    with pytest.warns(UserWarning, match=r"23 tokens.*its output has another form .* length"):
        out = fast(tokens(ODD))
    assert isinstance(out, tuple) and torch.equal(out[0], plain(tokens(ODD))[0])


class OddInTraining(Odd):
    """At a length that the first trial has in evaluation alone."""

    def forward(self, x):
        y = super().forward(x)
        return y.flip(-1) if self.training and x.shape[1] == 197 else y


class OddGradient(Odd):
    def forward(self, x):
        return super().forward(x.detach() if x.shape[1] == ODD + 1 else x)


@pytest.mark.parametrize(
    ("kind", "length", "reason"),
    [(OddInTraining, 197, "197 tokens.*something else"), (OddGradient, ODD + 1, "other gradients")],
)
def test_a_difference_in_one_mode_alone(kind, length, reason):
    plain, fast = pair(kind)
    with torch.no_grad():
        assert fused_ops(lambda: fast.eval()(tokens(length)))[1] == 1
    x = tokens(length).requires_grad_()
    with pytest.warns(UserWarning, match=reason):
        ours = fast.train()(x)
    assert torch.equal(ours, plain(x))
    ours.sum().backward()
    assert (x.grad is None) == (kind is OddGradient)


def test_nothing_shows_outside():
    plain, fast = pair(lambda: Block(32, 4, proj_drop=0.1, drop_path=0.1))
    calls = []
    for block in (plain, fast):
        block.attn.proj.register_forward_hook(lambda *_: calls.append(1))
    outputs = []
    for block in (plain, fast):
        torch.manual_seed(1)
        outputs.append((block(tokens(ODD)), torch.get_rng_state()))
    torch.testing.assert_close(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1]) and len(calls) == 2
    assert all(p.grad is None for p in fast.parameters())
    assert all(p.is_meta for p in fast.__dict__[REPLACEMENT].lengths.trial.template.parameters())


def test_modules_alike_and_threads_compare_once(monkeypatch):
    fast = pair(lambda: nn.ModuleList([Odd(), Odd()]))[1]
    keys = []

    def refusal_at(self, *key):
        keys.append(key)

    monkeypatch.setattr(Trial, "refusal_at", refusal_at)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: fast[i % 2](tokens(ODD + 1)), range(8)))
    assert keys == [((ODD + 1,), True, True)]
    with torch.no_grad():
        fast[0].eval()(tokens(ODD + 1))
    assert keys[1:] == [((ODD + 1,), False, False)]


def test_unpickled_modules_compare_anew():
    plain, fast = pair(Odd)
    fast(tokens(ODD + 1))
    twin = pickle.loads(pickle.dumps(fast))
    assert ((ODD + 1,), True, True) not in twin.__dict__[REPLACEMENT].lengths.equal
    assert fused_ops(lambda: twin(tokens(ODD + 1)))[1] == 1
    with pytest.warns(UserWarning, match="something else"):
        assert torch.equal(twin(tokens(ODD)), plain(tokens(ODD)))
    assert fused_ops(lambda: fast(tokens(ODD + 1)))[1] == 1  # the original has not met it


def test_copies_are_built_alike():
    """So a comparison serves all of them, and one program if they are compiled."""
    fast = pair(Odd)[1]
    twins = [copy.deepcopy(fast) for _ in range(3)]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for twin in (fast, *twins):
            compiled = torch.compile(twin, backend="eager", fullgraph=True)
            assert fused_ops(lambda compiled=compiled: compiled(tokens(ODD + 1)))[1] == 1
    assert {id(twin.__dict__[REPLACEMENT].lengths) for twin in (fast, *twins)} == {
        id(fast.__dict__[REPLACEMENT].lengths)
    }


def test_each_class_has_a_limit_of_recompilations():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for kind in (Odd, OddForm):
            compiled = torch.compile(pair(kind)[1], backend="eager", fullgraph=True)
            assert fused_ops(lambda compiled=compiled: compiled(tokens(ODD + 1)))[1] == 1


def test_each_class_has_lengths_of_its_own_when_compiled():
    """Dynamo makes a program for any length once it has met two; those of another class are no
    reason for it."""
    torch._dynamo.reset()
    for kind, length in ((Odd, ODD + 1), (OddForm, ODD + 2)):
        compiled = torch.compile(pair(kind)[1], backend="eager", fullgraph=True)
        assert fused_ops(lambda run=compiled, n=length: run(tokens(n)))[1] == 1


def test_lengths_without_end(monkeypatch):
    monkeypatch.setattr(lengths, "MOST", 2)
    fast = pair(Odd)[1]
    calls = [fused_ops(lambda n=n: fast(tokens(n)))[1] for n in (31, 32, 33, 31, 50)]
    assert calls == [1, 1, 0, 1, 1]


def test_a_length_counts_once_in_all_modes(monkeypatch):
    """A checkpoint calls without gradients first: it would draw otherwise the second time."""
    monkeypatch.setattr(lengths, "MOST", 2)
    fast = pair(Odd)[1].train()
    calls = []
    for n in (31, 32, 33):
        for context in (torch.no_grad, torch.enable_grad):
            with context():
                calls.append(fused_ops(lambda n=n: fast(tokens(n)))[1])
    assert calls == [1, 1, 1, 1, 0, 0]


def test_a_length_that_the_module_itself_refuses():
    class Short(Odd):
        def forward(self, x):
            if x.shape == (1, 31, 32):
                raise ValueError("not one sequence of 31")
            return super().forward(x)

    plain, fast = pair(Short)
    with warnings.catch_warnings(action="error"):
        out, calls = fused_ops(lambda: fast(tokens(31)))
    assert calls == 0 and torch.equal(out, plain(tokens(31)))
    assert fused_ops(lambda: fast(tokens(32)))[1] == 1


def test_a_program_for_any_length_has_the_modules_own_code():
    plain, fast = pair(lambda: Block(32, 4).eval())
    length = torch.export.Dim("length", min=2, max=600)
    with torch.no_grad():
        program = torch.export.export(
            fast, (tokens(9),), dynamic_shapes=({1: length},), strict=True
        ).module()
        for n in (9, ODD, 577):
            torch.testing.assert_close(program(tokens(n)), plain(tokens(n)))


def in_place(x):
    torch.distributed.all_reduce(x)
    return x


def functional(x):
    from torch.distributed import _functional_collectives

    return _functional_collectives.all_reduce(x, "sum", torch.distributed.group.WORLD)


@pytest.mark.parametrize("collective", [in_place, functional])
def test_what_communicates_is_not_tried(collective, tmp_path):
    class Parallel(Odd):
        def forward(self, x):
            return collective(super().forward(x))

    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        assert "communicates with other ranks" in accelerate(Parallel()).kept[""]
    finally:
        torch.distributed.destroy_process_group()
