"""The fast model as a user meets it: construction, folders, compiling, dtypes, devices' neighbours.

That it computes what the reference computes is ``test_pipeline_parity.py``.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import get_args

import pytest
import torch

import ivcl_fast
from ivcl_fast import IVCLClassifier, IVCLConfig, reference, supervised
from ivcl_fast.config import SupervisedObjective
from ivcl_fast.models import ivcl as model
from ivcl_fast.training.classes import pretraining_model

SIZES = dict(image_size=16, patch_size=4, num_frames=3, num_query_frames=2, depth=2, embed_dim=32)
CFG = IVCLConfig.preset("tiny", **SIZES)
SEED = torch.tensor([1, 2])


def video() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("objective", ["ivcl", "mae", "joint", "slot_attention"])
@pytest.mark.parametrize("readout", ["last", "cls"])
def test_same_seed_same_keys_same_weights(objective, readout):
    cfg = IVCLConfig.preset("tiny", **SIZES, objective=objective, readout=readout)
    pretraining = model.pretraining_class(cfg)
    (plain_pretraining,) = (plain for plain, fast in model.FAST.items() if fast is pretraining)
    for plain_class, fast_class in (
        (plain_pretraining, pretraining),
        (reference.IVCLClassifier, ivcl_fast.IVCLClassifier),
    ):
        torch.manual_seed(0)
        plain = plain_class(cfg)
        torch.manual_seed(0)
        fast = fast_class(cfg)
        ours, theirs = fast.state_dict(), plain.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        fast.load_state_dict(theirs, strict=True)
        plain.load_state_dict(ours, strict=True)


@pytest.mark.parametrize("objective", get_args(SupervisedObjective))
def test_supervised_models_are_the_references(objective, tmp_path):
    """Same keys and weights; a folder gives it back; a classifier goes on from its encoder."""
    cfg = IVCLConfig.preset("tiny", **SIZES, objective=objective)
    torch.manual_seed(0)
    plain = supervised.Supervised(cfg, 7)
    torch.manual_seed(0)
    fast = ivcl_fast.Supervised(cfg, 7)
    heads = {"classification": "label_head", "detection": "detect_head", "objects": "slot_head"}
    head = heads[objective]
    encoder = {f"encoder.{key}" for key in reference.Encoder(cfg).state_dict()}
    assert set(fast.state_dict()) == encoder | {f"{head}.weight", f"{head}.bias"}
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast.save_pretrained(tmp_path)
    for other in (plain, ivcl_fast.Supervised.from_pretrained(str(tmp_path))):
        for key, value in other.state_dict().items():
            assert torch.equal(value, fast.state_dict()[key]), key
    parts = {"detection": (16,), "objects": (cfg.num_slots,)}
    assert fast(video()).shape == (2, 3, *parts.get(objective, ()), 7)
    ivcl_fast.accelerate(plain)
    assert type(plain) is ivcl_fast.Supervised and torch.equal(plain(video()), fast(video()))
    classifier = ivcl_fast.IVCLClassifier(cfg, 5)
    assert set(classifier.load_pretrained(tmp_path)) == encoder
    assert torch.equal(classifier.encoder.slot_tokens, fast.encoder.slot_tokens)
    assert hasattr(classifier, "temporal")


def equal_classifiers(cfg: IVCLConfig) -> tuple[reference.IVCLClassifier, IVCLClassifier]:
    """The reference and the fast model, with the same random weights."""
    torch.manual_seed(0)
    plain, fast = reference.IVCLClassifier(cfg, 5), IVCLClassifier(cfg, 5)
    for weight in plain.parameters():  # some start at zero
        weight.data += 0.02 * torch.randn_like(weight)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


@pytest.mark.parametrize("objective", ["ivcl", "joint", "slot_attention"])
def test_every_frame_is_answered_as_the_last_one(objective):
    """Frames with the same slots have the same answer; both models agree on all of them."""
    cfg = IVCLConfig.preset("tiny", **SIZES, objective=objective)
    plain, fast = equal_classifiers(cfg)
    frames = video()
    expected = plain(frames, every_frame=True)
    assert expected.shape == (2, 3, 5)
    torch.testing.assert_close(expected[:, -1], plain(frames))
    torch.testing.assert_close(fast(frames, every_frame=True), expected)
    torch.testing.assert_close(fast(frames), expected[:, -1])
    assert not torch.allclose(expected[:, 0], expected[:, -1])


@pytest.mark.parametrize("objective", ["ivcl", "slot_attention"])
@pytest.mark.parametrize("readout", ["last", "mean", "cls"])
def test_slots_stand_for_their_video(objective, readout):
    """Also those of a video whose clips share frames; the reference and the fast model agree."""
    cfg = IVCLConfig.preset("tiny", **SIZES, objective=objective, readout=readout)
    plain, fast = equal_classifiers(cfg)
    frames = video()
    frame_index = torch.tensor([[[0, 1, 2], [2, 0, 1]]] * 2)
    for net in (plain, fast):
        slots = net.slots(frames)
        assert slots.shape == (2, 3, cfg.num_slots, cfg.embed_dim)
        torch.testing.assert_close(slots, plain.slots(frames))
        torch.testing.assert_close(net(slots), plain(frames))
        torch.testing.assert_close(net(slots, frame_index), plain(frames, frame_index))
        shared = net.slots(frames, frame_index)
        assert shared.shape == (4, *slots.shape[1:])
        torch.testing.assert_close(net(shared), plain(frames, frame_index))
    called = []
    fast.encoder.register_forward_hook(lambda *arguments: called.append(1))
    torch.testing.assert_close(fast.slots(frames), plain.slots(frames))
    assert called == [1]


# --- Compiling ------------------------------------------------------------------------------------
# The cheapest backend: what is asked here is what is traced, and how often.


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("amp", [False, True])
def test_blocks_compile_in_place_and_share_graphs(amp):
    from torch._dynamo.utils import counters

    fast, compiled = ivcl_fast.IVCL(CFG), ivcl_fast.IVCL(CFG)
    compiled.load_state_dict(fast.state_dict())
    counters.clear()
    compiled.compile_blocks(backend="eager")
    assert list(compiled.state_dict()) == list(fast.state_dict())

    def step(some_model, seed):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            return some_model(video(), seed=seed)

    step(compiled, SEED).loss.backward()
    # The first and the last block of each: encoder, temporal, decoder.
    assert counters["stats"]["unique_graphs"] == 6
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (SEED, SEED + 5, SEED * 1000):
            out = step(compiled, seed)
            out.loss.backward()
            torch.testing.assert_close(out.pred, step(fast, seed).pred)
    fast.load_state_dict(compiled.state_dict(), strict=True)
    reference.IVCL(CFG).load_state_dict(compiled.state_dict(), strict=True)


# --- Dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "video_slots", "compiled"),
    [("ivcl", False, False), ("ivcl", False, True), ("slot_attention", True, True)],
)
def test_checkpointed_blocks_give_the_same_gradients(objective, video_slots, compiled):
    cfg = dataclasses.replace(CFG, objective=objective, video_slots=video_slots)
    plain = pretraining_model(cfg)
    lean = copy.deepcopy(plain)
    lean.checkpoint_blocks()
    if compiled:  # as train does, in this order
        lean.compile_blocks(backend="aot_eager")
    for net in (plain, lean):
        net(video(), **({"seed": SEED} if objective == "ivcl" else {})).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)
    assert lean.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("low", [False, True])
def test_the_residual_stream_under_autocast(low):
    """Float32 or, with ``low_precision_residual``, bfloat16: both as close as the reference is."""
    cfg = dataclasses.replace(CFG, low_precision_residual=low)
    fast, plain = ivcl_fast.IVCL(cfg), reference.IVCL(cfg)
    exact = reference.IVCL(CFG).double()
    for net in (plain, exact):
        net.load_state_dict(fast.state_dict())
    seen = []
    for net in (fast, plain):
        for part in (net.encoder, net.temporal, net.decoder):
            part.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    outs = []
    for net in (fast, plain, exact):
        with torch.autocast("cpu", torch.bfloat16, enabled=net is not exact):
            outs.append(net(video(), seed=SEED))
        outs[-1].loss.backward()
    assert seen == 6 * [torch.bfloat16 if low else torch.float32]
    assert outs[0].pred.dtype == torch.bfloat16 and outs[0].loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in fast.parameters())
    preds = [out.pred.double() for out in outs]
    grads = [
        torch.cat([p.grad.double().flatten() for p in net.parameters()])
        for net in (fast, plain, exact)
    ]
    for ours, theirs, truth in (preds, grads):
        error, allowed = (ours - truth).abs().max(), (theirs - truth).abs().max()
        assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * truth.abs().max()
