from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from timm.layers import RmsNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import ivcl_fast
from ivcl_fast import IVCLConfig, accelerate, reference, restore, slot_autoencoder, supervised
from ivcl_fast.models import ivcl as model
from ivcl_fast.models.accelerate import crossovers
from tests.models.test_model import SEED, SIZES, video
from tests.support.marks import needs_kernels

CFG = IVCLConfig.preset("tiny", **SIZES | {"depth": 1})


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=3, **options
    )


def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# --- The reference --------------------------------------------------------------------------------


def test_the_reference_becomes_the_fast_model_and_back(caplog):
    plain, other = reference.IVCL(CFG), reference.IVCL(CFG)
    before = {name: type(part) for name, part in plain.named_modules()}
    state, values = dict(plain.__dict__), {k: v.clone() for k, v in plain.state_dict().items()}
    expected = plain(video(), seed=SEED)

    report = accelerate(plain)
    assert type(plain) is ivcl_fast.IVCL
    assert not report.kept
    assert report.replaced[""] == "IVCL" and report.replaced["encoder.blocks.0.attn"] == "Attention"
    close(plain(video(), seed=SEED).pred, expected.pred)
    assert plain.state_dict().keys() == values.keys()
    assert all(torch.equal(v, values[k]) for k, v in plain.state_dict().items())
    assert {name: type(part) for name, part in other.named_modules()} == before
    assert accelerate(plain).replaced == {}  # nothing left to do

    restore(plain)
    assert {name: type(part) for name, part in plain.named_modules()} == before
    assert plain.__dict__.keys() == state.keys()
    assert all("attention_backend" not in part.__dict__ for part in plain.modules())
    assert torch.equal(plain(video(), seed=SEED).pred, expected.pred)
    assert caplog.messages == []


def scaled(out):
    """What a model's part returns, times 1.5."""
    if isinstance(out, tuple):
        return tuple(map(scaled, out))
    return 1.5 * out if isinstance(out, torch.Tensor) else out


@pytest.mark.parametrize(
    ("build", "objective"),
    [
        (reference.IVCL, "ivcl"),
        (reference.IVCLClassifier, "ivcl"),
        (reference.IVCLClassifier, "slot_attention"),
        (slot_autoencoder.SlotAutoencoder, "slot_attention"),
        (lambda cfg: supervised.Supervised(cfg, 3), "classification"),
    ],
)
def test_hooks_on_parts_of_the_reference_stay(build, objective):
    torch.manual_seed(0)
    plain = build(dataclasses.replace(CFG, objective=objective, depth=2))
    call = {"seed": SEED} if build is reference.IVCL else {}
    for name, part in plain.named_modules():
        if name:
            fast = copy.deepcopy(plain)
            accelerate(fast)
            handles = [
                p.register_forward_hook(lambda part, args, out: scaled(out))
                for p in (part, fast.get_submodule(name))
            ]
            outs = [model(video(), **call) for model in (fast, plain)]
            close(*(out if isinstance(out, torch.Tensor) else out.pred for out in outs))
            handles[0].remove()


def test_a_part_alone():
    plain = reference.IVCL(CFG)
    expected = plain(video(), seed=SEED).pred
    accelerate(plain.encoder)
    assert type(plain) is reference.IVCL and type(plain.encoder) is model.Encoder
    close(plain(video(), seed=SEED).pred, expected)
    accelerate(plain)
    restore(plain.decoder.blocks)  # a fast decoder of plain blocks
    assert type(plain.decoder.blocks[0].mlp) is reference.Mlp
    close(plain(video(), seed=SEED).pred, expected)


def test_a_new_fast_model_is_not_undone():
    fast = ivcl_fast.IVCL(CFG)
    restore(fast)
    assert type(fast.encoder) is model.Encoder


def test_the_configs_attention_backend_is_followed():
    plain = reference.IVCL(dataclasses.replace(CFG, attention="eager"))
    for whole in (plain, nn.ModuleList([plain])):  # by itself, and inside another module
        accelerate(whole)
        assert plain.encoder.blocks[0].attn.attention_backend == "eager"
        restore(whole)
        assert "attention_backend" not in plain.encoder.blocks[0].attn.__dict__


def test_accelerated_models_save_and_load(tmp_path):
    plain = reference.IVCLClassifier(CFG, 5)
    accelerate(plain)
    plain.save_pretrained(tmp_path)
    loaded = ivcl_fast.IVCLClassifier.from_pretrained(tmp_path)
    assert torch.equal(loaded(video()), plain(video()))


# --- Other people's models ------------------------------------------------------------------------


@needs_kernels
def test_timm_with_gradients():
    plain, fast = vit(), vit()
    report = accelerate(fast)
    kinds = sorted(report.replaced.values())
    expected = [*["Attention"] * 2, *["Block"] * 2, "Conv2d", *["Mlp"] * 2]
    assert kinds == expected and not report.kept
    assert isinstance(fast.blocks[0], type(plain.blocks[0]))
    ours, theirs = fast(images()), plain(images())
    close(ours, theirs)
    F.cross_entropy(ours, torch.tensor([0, 2])).backward()
    F.cross_entropy(theirs, torch.tensor([0, 2])).backward()
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad)
    restore(fast)
    assert [type(a) for a in fast.modules()] == [type(b) for b in plain.modules()]
    assert torch.equal(fast(images()), theirs)


@pytest.mark.parametrize(
    ("options", "part", "reason"),
    [
        ({"act_layer": nn.SiLU}, "blocks.0.mlp", "SiLU): only GELU"),
        ({"norm_layer": nn.RMSNorm}, "blocks.0", "norm1: it has no epsilon of its own"),
    ],
)
@needs_kernels
def test_what_would_change_the_answer_is_kept(options, part, reason):
    fast, plain = vit(**options), vit(**options)
    report = accelerate(fast)
    assert reason in report.kept[part]
    assert reason in str(report)
    assert "blocks.0.attn" in report.replaced  # its neighbours do not suffer
    close(fast(images()), plain(images()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": True, "norm_layer": nn.LayerNorm},
        {"norm_layer": RmsNorm},
        {"init_values": 0.5},
        {"drop_path_rate": 0.3},
        {"proj_drop_rate": 0.3},
        {"qkv_bias": False},
        {"class_token": False, "reg_tokens": 4, "global_pool": "avg"},
    ],
    ids=lambda options: next(iter(options)),
)
@needs_kernels
def test_variants_of_the_block_are_fused(options, training):
    """With the same random numbers in the same order, in training."""
    fast, plain = vit(**options).train(training), vit(**options).train(training)
    report = accelerate(fast)
    assert len(report.replaced) == 7 and not report.kept
    outputs = []
    for part in (fast, plain):
        torch.manual_seed(1)
        out = part(images())
        out.square().sum().backward()
        outputs.append([out, *(p.grad for p in part.parameters())])
    for ours, theirs in zip(*outputs, strict=True):
        close(ours, theirs)


class Biased(reference.Attention):
    """A position bias that only the forward pass and one parameter tell of."""

    def __init__(self) -> None:
        super().__init__(32, 4)
        self.table = nn.Parameter(torch.zeros(3))


class Scaled(reference.Mlp):
    """Computes something else with the very same parts."""

    def __init__(self) -> None:
        super().__init__(32, 64)
        self.act = nn.GELU()

    def forward(self, x):
        return 2 * super().forward(x)


@needs_kernels
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Biased, "table"),
        (Scaled, "computes something else"),
    ],
)
def test_imposters_are_found_out(build, reason):
    imposter = build()
    state = torch.get_rng_state()
    report = accelerate(imposter)
    assert torch.equal(torch.get_rng_state(), state)
    assert not report.replaced and reason in report.kept[""]
    assert type(imposter) is build and imposter.training


@needs_kernels
def test_hooks_that_would_fall_silent():
    fast, calls = vit(), []
    fast.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    fast.blocks[1].mlp.fc1.register_forward_pre_hook(lambda *_: calls.append(1))
    fast.blocks[1].attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    report = accelerate(fast)
    assert not calls  # trying does not call them either
    assert "norm1 has a hook" in report.kept["blocks.0"]
    assert "fc1 has a hook" in report.kept["blocks.1.mlp"]
    fast(images())
    assert len(calls) == 3


@needs_kernels
def test_blocks_whose_calls_have_rotations_are_kept():
    torch.manual_seed(0)
    eva = Eva(16, 8, embed_dim=32, depth=2, num_heads=4, num_classes=3, use_rot_pos_emb=True)
    expected = eva.eval()(images())
    report = accelerate(eva)
    assert "rope" in report.kept["blocks.0"]
    assert {"blocks.0.attn", "blocks.1.attn"} <= set(report.replaced)
    close(eva(images()), expected)


def test_a_mask_or_another_rank_goes_the_old_way():
    fast, plain = vit().blocks[0].attn, vit().blocks[0].attn
    accelerate(fast)
    x, mask = torch.randn(2, 5, 32), torch.randn(5, 5)
    close(fast(x, attn_mask=mask), plain(x, attn_mask=mask))
    close(fast(x, is_causal=True), plain(x, is_causal=True))
    assert not torch.allclose(fast(x), fast(x, attn_mask=mask))


def test_replaced_forward_and_meta_are_kept():
    odd = vit().blocks[0].mlp
    odd.forward = lambda x: x
    assert "forward was replaced" in accelerate(odd).kept[""]
    with torch.device("meta"):
        empty = vit().blocks[0].mlp
    assert "meta" in accelerate(empty).kept[""]


# --- The report ----------------------------------------------------------------------------------


@needs_kernels
def test_report_reads_well():
    lines = str(accelerate(vit(norm_layer=nn.RMSNorm))).splitlines()
    assert lines[0] == "5 modules replaced, 2 kept"
    assert "  replaced blocks.0.attn and 1 more: Attention, 1 fused op" in lines
    assert any(line.startswith("  kept blocks.0 and 1 more: Block: norm1") for line in lines)


def test_a_report_of_nothing_says_why():
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert str(accelerate(other)).startswith(
        "0 modules replaced, 0 kept: nothing was found that has a fused version; known are the "
        "modules of ivcl_fast.reference"
    )
    fused = "0 modules replaced, 0 kept: all that have a fused version run on it already"
    plain = reference.IVCL(CFG)
    accelerate(plain)
    for again in (ivcl_fast.IVCL(CFG), plain):
        assert str(accelerate(again)) == fused
    other = vit()
    accelerate(other)
    assert "kept: all that have a fused version run on it already" in str(accelerate(other))


def test_without_kernels_only_the_embedding_of_patches_is_replaced(monkeypatch):
    monkeypatch.setattr(crossovers, "unsupported_reason", lambda *_: "no object for this CPU")
    report = accelerate(vit())
    assert report.replaced == {"patch_embed.proj": "Conv2d"}
    expected = "Block: nothing is gained on this device: no object for this CPU"
    assert report.kept["blocks.0"] == expected
