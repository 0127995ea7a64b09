"""The reference model against timm, against arithmetic done by hand, and against its contract."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ivcl_fast import IVCLConfig, reference
from ivcl_fast.models.slot_attention import SlotAttention
from tests.training.test_pipeline_parity import some_video

EPS = torch.finfo(torch.float32).eps


def small(**fields) -> IVCLConfig:
    sizes = dict(image_size=16, patch_size=4, num_frames=4, num_query_frames=2, depth=2)
    return IVCLConfig.preset("tiny", **sizes | fields)


def randomise(model: nn.Module) -> None:
    """Weights that hide nothing: no zeros, no ones."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)


# --- Outside oracle: timm -------------------------------------------------------------------------


def timm_twin(cfg: IVCLConfig, **tokens) -> VisionTransformer:
    # fc_norm=False: with average pooling timm would otherwise leave the final norm away.
    return VisionTransformer(
        img_size=cfg.image_size, patch_size=cfg.patch_size, embed_dim=cfg.embed_dim,
        depth=cfg.depth, num_heads=cfg.num_heads, num_classes=0, fc_norm=False, **tokens,
    )  # fmt: skip


def normalised(video: torch.Tensor) -> torch.Tensor:
    return ((video.float() / 255 - 0.5) / 0.5).flatten(0, 1)


def encode_all(encoder: reference.Encoder, video: torch.Tensor, cfg: IVCLConfig) -> torch.Tensor:
    rows = reference.patch_rows(video, cfg)
    slots, patches, _ = encoder(rows, reference.all_patches(rows))
    return torch.cat([slots, patches], dim=2).flatten(0, 1)


def test_encoder_equals_timm_with_register_tokens():
    cfg = small(num_slots=3)
    encoder = reference.Encoder(cfg)
    randomise(encoder)
    twin = timm_twin(cfg, class_token=False, reg_tokens=3, no_embed_class=True, global_pool="avg")
    names = {"slot_tokens": "reg_token"}
    twin.load_state_dict({names.get(k, k): v for k, v in encoder.state_dict().items()})

    ours = encode_all(encoder, some_video(cfg), cfg)
    theirs = twin.forward_features(normalised(some_video(cfg)))
    # Rounding grows with depth and width; 64 units in the last place is far below any real error.
    torch.testing.assert_close(ours, theirs, atol=64 * EPS * theirs.abs().max().item(), rtol=0)

    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for name, parameter in encoder.named_parameters():
        expected = twin.get_parameter(names.get(name, name)).grad
        bound = 256 * EPS * max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(parameter.grad, expected, atol=bound, rtol=0, msg=name)


# --- The contract: keys, initial weights ----------------------------------------------------------


def block_keys(prefix: str, depth: int) -> set[str]:
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return {
        f"{prefix}.blocks.{i}.{part}.{kind}"
        for i in range(depth)
        for part in parts
        for kind in ("weight", "bias")
    } | {f"{prefix}.norm.weight", f"{prefix}.norm.bias"}


ENCODER = {
    "encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias",
    "encoder.pos_embed", "encoder.slot_tokens",
} | block_keys("encoder", 4)  # fmt: skip
TEMPORAL = {"temporal.time_embed"} | block_keys("temporal", 2)
DECODER = {
    "decoder.embed.weight", "decoder.embed.bias", "decoder.mask_token", "decoder.pos_embed",
    "decoder.pred.weight", "decoder.pred.bias",
} | block_keys("decoder", 2)  # fmt: skip
HEAD = {"head.weight", "head.bias"}


def test_state_dict_keys():
    def pretrain(objective):
        return set(reference.IVCL(IVCLConfig(objective=objective)).state_dict())

    def classify(**fields):
        return set(reference.IVCLClassifier(IVCLConfig(**fields)).state_dict())

    assert pretrain("ivcl") == ENCODER | TEMPORAL | DECODER
    assert pretrain("mae") == ENCODER | DECODER
    assert pretrain("joint") == ENCODER | {"encoder.time_embed"} | DECODER
    assert classify() == ENCODER | TEMPORAL | HEAD
    assert classify(readout="cls") == ENCODER | TEMPORAL | HEAD | {"cls_token"}
    assert classify(objective="mae") == ENCODER | TEMPORAL | HEAD
    assert classify(objective="joint") == ENCODER | {"encoder.time_embed"} | HEAD
    competing = {f"encoder.slot_attention.{key}" for key in SlotAttention(8).state_dict()}
    assert classify(objective="slot_attention") == ENCODER | competing | TEMPORAL | HEAD


def test_initial_weights():
    torch.manual_seed(0)
    model = reference.IVCL(IVCLConfig(num_slots=64))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif name.endswith("weight"):  # uniform in +-bound has the standard deviation bound/sqrt(3)
            bound = math.sqrt(6 / sum(p.flatten(1).shape))
            assert p.abs().max() <= bound, name
            # The sample deviation of n uniform values strays by about 0.45 / sqrt(n) of itself.
            assert abs(p.std() * math.sqrt(3) / bound - 1) < 5 * 0.45 / math.sqrt(p.numel()), name
        elif name.endswith(("slot_tokens", "mask_token")):
            assert abs(p.std() / 0.02 - 1) < 5 * 0.71 / math.sqrt(p.numel()), name


def test_positions_by_hand():
    table = reference.sincos_positions(3, 4)
    for n in range(3):
        expected = [math.sin(n), math.sin(n / 100), math.cos(n), math.cos(n / 100)]
        torch.testing.assert_close(table[n], torch.tensor(expected))
    grid = reference.grid_positions(3, 8)[0]
    for row in range(3):
        for column in range(3):
            expected = torch.cat([table[row], table[column]])
            torch.testing.assert_close(grid[3 * row + column], expected)


# --- Pixels, masks, loss --------------------------------------------------------------------------


def test_patch_order_is_a_convolutions():
    frames = torch.randn(2, 3, 8, 8)
    rows = reference.patchify(frames, 4)
    weight = torch.randn(5, 3, 4, 4)
    convolved = F.conv2d(frames, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows @ weight.flatten(1).T, convolved)
    assert rows[1, 1, 16 + 2 * 4 + 3] == frames[1, 1, 2, 4 + 3]  # patch 1, green, y 2, x 3
    assert torch.equal(reference.unpatchify(rows, 4), frames)


def splitmix64(state: int) -> int:
    """Steele, Lea, Flood: "Fast splittable pseudorandom number generators", in whole numbers."""
    z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@pytest.mark.parametrize("seed", [0, 1, 2**62, -1, -(2**63)])
def test_masks_by_hand(seed):
    keys = {n: splitmix64((seed + (n + 1) * 0x9E3779B97F4A7C15) % 2**64) for n in range(10)}
    order = sorted(keys, key=lambda n: (keys[n] >> 17, n))
    keep, mask = reference.sample_masks(torch.tensor([seed]), 10, 4)
    assert keep[0].tolist() == sorted(order[:4])
    assert mask[0].tolist() == sorted(order[4:])


def test_masks_depend_on_the_clips_own_seed_alone():
    cfg = small()
    model, video = reference.IVCL(cfg), some_video(cfg)
    both = model(video, seed=torch.tensor([5, 9]))
    alone = model(video[1:], seed=torch.tensor([9]))
    for field in ("ids_keep", "ids_mask", "query"):
        assert torch.equal(getattr(both, field)[1:], getattr(alone, field)), field
    ids = torch.cat([both.ids_keep, both.ids_mask], dim=-1).sort().values
    assert torch.equal(ids, torch.arange(cfg.num_patches).expand_as(ids))
    for field in ("ids_keep", "ids_mask", "query"):
        assert (getattr(both, field).diff(dim=-1) > 0).all(), field
    assert not torch.equal(both.ids_keep[0], both.ids_keep[1])
    assert not torch.equal(both.ids_keep[0, 0], both.ids_keep[0, 1])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_by_hand(norm_pix):
    cfg = small(norm_pix=norm_pix)
    model, video = reference.IVCL(cfg), some_video(cfg)
    out = model(video, seed=torch.tensor([1, 2]))
    pixels = ((video.double() / 255) - 0.5) / 0.5
    total = []
    for clip in range(2):
        for q, frame in enumerate(out.query[clip].tolist()):
            for m, patch in enumerate(out.ids_mask[clip, frame].tolist()):
                y, x = 4 * (patch // 4), 4 * (patch % 4)
                target = pixels[clip, frame, :, y : y + 4, x : x + 4].flatten()
                if norm_pix:
                    variance = ((target - target.mean()) ** 2).sum() / (len(target) - 1)
                    target = (target - target.mean()) / (variance + 1e-6).sqrt()
                total.append(((out.pred[clip, q, m].double() - target) ** 2).mean())
    torch.testing.assert_close(out.loss.double(), torch.stack(total).mean(), rtol=1e-5, atol=0)
    assert out.pred.shape == (2, 2, cfg.num_patches - cfg.num_keep, cfg.patch_dim)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_gives_the_input_back(norm_pix):
    cfg = small(norm_pix=norm_pix)
    model, video = reference.IVCL(cfg), some_video(cfg)
    out = model(video, seed=torch.tensor([1, 2]))
    rows = reference.patch_rows(video, cfg)
    mask = reference.take_rows(out.ids_mask, out.query)
    perfect = reference.take_rows(model.target(rows, out.query)[0], mask)
    frames = reference.take_rows(video.float() / 255, out.query)
    reconstructed = model.reconstruct(video, out._replace(pred=perfect))
    torch.testing.assert_close(reconstructed, frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["ivcl", "mae", "joint"])
def test_every_form_of_a_video_is_the_same(objective):
    cfg = small(objective=objective)
    model, video = reference.IVCL(cfg), some_video(cfg)
    seed = torch.tensor([1, 2])
    outs = [
        model(form, seed=seed)
        for form in (video, video.float() / 255, reference.patch_rows(video, cfg))
    ]
    assert all(torch.equal(outs[0].pred, out.pred) for out in outs)
    again = model(video, ids_keep=outs[0].ids_keep, query=outs[0].query)
    assert all(torch.equal(a, b) for a, b in zip(outs[0], again, strict=True))


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"objective": "joint"}, {"objective": "slot_attention"},
        {"objective": "slot_attention", "video_slots": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("readout", ["last", "mean", "cls"])
def test_clips_that_share_frames(fields, readout):
    """Logits and gradients are those of the clips each with frames of its own."""
    cfg = small(readout=readout, **fields)
    model, frames = reference.IVCLClassifier(cfg, 5).double(), some_video(cfg)  # 2 of 4 frames
    frame_index = torch.tensor([[[0, 1, 2, 3], [0, 1, 2, 0], [3, 3, 1, 2]], [[1, 2, 3, 0]] * 3])
    alone = torch.stack([frames[v, ids] for v in range(2) for ids in frame_index[v]])
    found = []
    for arguments in ((frames, frame_index), (alone,)):
        model.zero_grad()
        logits = model(*arguments)
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert found[0][0].shape == (6, 5)
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)


def test_only_query_frames_and_slots_reach_the_decoder():
    """A frame that is no query acts through its slots alone, and only in IV-CL."""
    cfg = small(objective="mae")
    model, video = reference.IVCL(cfg), some_video(cfg)
    seed = torch.tensor([1, 2])
    changed = video.clone()
    changed[:, 0] = 255 - changed[:, 0]
    before, after = model(video, seed=seed), model(changed, seed=seed)
    assert torch.equal(before.query, torch.arange(4).expand(2, -1))
    assert torch.equal(before.pred[:, 1:], after.pred[:, 1:])
    assert not torch.equal(before.pred[:, 0], after.pred[:, 0])
