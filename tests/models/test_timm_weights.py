"""timm's ViT weights in the image encoder: against timm itself where it is installed, else by hand.

No weights are fetched: files stand for those of the hub. Last, initial weights of other kinds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ivcl_fast import IVCL, IVCLClassifier, Supervised, reference
from ivcl_fast.errors import UserError
from ivcl_fast.models import timm_weights
from ivcl_fast.models.backbone import load_backbone, resize_embedding, zero_branches
from tests.support.small_models import config, random_video

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def vit_weights(grid=4, patch=4, width=16, depth=2, cls=True, registers=0) -> dict[str, Tensor]:
    """A plain ViT by timm's keys, with random weights."""
    generator = torch.Generator().manual_seed(0)
    cfg = config(image_size=grid * patch, patch_size=patch, embed_dim=width, depth=depth)
    shapes = {key: value.shape for key, value in reference.Encoder(cfg).state_dict().items()}
    shapes |= {"head.weight": (10, width), "head.bias": (10,)}
    shapes["pos_embed"] = (1, grid**2 + cls + registers, width)
    del shapes["slot_tokens"]
    if cls:
        shapes["cls_token"] = (1, 1, width)
    if registers:
        shapes["reg_token"] = (1, registers, width)
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def saved(weights: dict[str, Tensor], folder: Path, **told) -> str:
    """A folder as on the hub, as a source."""
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": told}))
    return f"timm:{folder}"


def encode(model: reference.IVCL, video: Tensor) -> Tensor:
    """Slots and patches of every frame, ``[F, S + N, D]``."""
    rows = reference.patch_rows(video, model.cfg)
    slots, patches, _ = model.encoder(rows, reference.all_patches(rows))
    return torch.cat([slots, patches], dim=2).flatten(0, 1)


# --- Outside oracle: timm ------------------------------------------------------------------------


@pytest.mark.parametrize(("registers", "statistics"), [(0, IMAGENET), (2, {}), (3, IMAGENET)])
def test_timm_gives_the_same_encoder_output(registers, statistics, tmp_path):
    """Registers and no cls token, or the usual ViT: its cls token has a position."""
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    only = dict(class_token=False, reg_tokens=registers, no_embed_class=True, global_pool="avg")
    vit = vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0, fc_norm=False,
        **(only if registers else {}),
    )  # fmt: skip
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    model = IVCL(config(num_slots=registers or 1))
    source = saved(vit.state_dict(), tmp_path / "vit", **statistics)
    taken = load_backbone(model, source)
    assert set(taken) == {key for key in model.state_dict() if key.startswith("encoder.")}
    mean, std = (
        torch.tensor(statistics.get(name, (0.5,) * 3))[:, None, None] for name in ("mean", "std")
    )
    video = random_video(2)
    theirs = vit.forward_features(((video / 255 - mean) / std).flatten(0, 1))
    torch.testing.assert_close(encode(model, video), theirs, atol=1e-4, rtol=1e-4)


# --- By hand -------------------------------------------------------------------------------------


def test_other_patches_and_positions_are_resampled(tmp_path):
    """Patches of 2 on a grid of 6, to patches of 4 on a grid of 4: a patch that is enlarged has the
    token that it had before."""
    pytest.importorskip("timm")
    weights = vit_weights(grid=6, patch=2)
    weights["pos_embed"][:, 1:] = torch.arange(16.0)  # the same everywhere
    model = Supervised(config(objective="detection"), 5)
    load_backbone(model, saved(weights, tmp_path / "vit"))
    encoder = model.encoder.state_dict()
    expected = torch.arange(16.0).expand(1, 16, 16)
    torch.testing.assert_close(encoder["pos_embed"], expected, atol=1e-5, rtol=1e-5)
    patch = torch.rand(1, 3, 2, 2)
    larger = F.interpolate(patch, (4, 4), mode="bilinear", antialias=True)
    before, after = (
        x.flatten(1) @ state["patch_embed.proj.weight"].flatten(1).T
        for x, state in ((patch, weights), (larger, encoder))
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("weights", "cfg", "said"),
    [
        (vit_weights(width=32), {}, "--embed-dim, --depth: expected 32 and 2"),
        (vit_weights(registers=2), {}, "--num-slots: expected at least 3"),
        (vit_weights(), dict(mlp_ratio=2.0), r"mlp.fc1.bias is \[64\] there, but \[32\] in this"),
        (
            vit_weights() | {"blocks.0.ls1.gamma": torch.ones(16)}, {},
            "expected a plain ViT .*with blocks.0.ls1.gamma",
        ),
        (
            {key: x for key, x in vit_weights().items() if key != "blocks.1.attn.qkv.bias"}, {},
            "expected a plain ViT .*without blocks.1.attn.qkv.bias",
        ),
    ],
    ids=["width", "registers", "MLP", "layer scale", "no bias"],
)  # fmt: skip
def test_vits_that_do_not_fit_are_refused(weights, cfg, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        IVCLClassifier(config(**cfg), 5).load_pretrained(saved(weights, tmp_path / "vit"))
    assert "\n" not in str(error.value)


# --- By name -------------------------------------------------------------------------------------


def stand_in(weights: dict[str, Tensor], heads: int = 2, **told) -> SimpleNamespace:
    """timm with one model."""
    block = SimpleNamespace(attn=SimpleNamespace(num_heads=heads))
    model = SimpleNamespace(blocks=[block], pretrained_cfg=told, state_dict=lambda: weights)

    def create_model(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == ("vit_small.best", True, 0)
        return model

    return SimpleNamespace(is_model=lambda name: name == "vit_small", create_model=create_model)


def test_a_name_is_asked_of_timm(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", stand_in(vit_weights(), **IMAGENET))
    by_name, by_path = IVCL(config()), IVCL(config())
    by_path.load_state_dict(by_name.state_dict())
    timm_weights.check("timm:vit_small.best")
    timm_weights.check("timm:hf-hub:OWNER/of_somebody")
    load_backbone(by_name, "timm:vit_small.best")
    load_backbone(by_path, saved(vit_weights(), tmp_path / "vit", **IMAGENET))
    for key, value in by_name.state_dict().items():
        assert torch.equal(value, by_path.state_dict()[key]), key


def test_weights_that_timm_cannot_load_give_one_line(monkeypatch):
    def create_model(*args, **options):
        raise RuntimeError("no connection\nretrying")

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    with pytest.raises(UserError, match=r"^timm:x: timm cannot load .*: no connection$"):
        timm_weights.read("timm:x")


def test_blocks_begin_as_the_identity():
    torch.manual_seed(0)
    model = reference.IVCL(config())
    blocks = [part for part in model.modules() if isinstance(part, reference.Block)]
    clips = [torch.randn(2, 5, block.norm1.weight.numel()) for block in blocks]
    assert not any(torch.equal(block(x), x) for block, x in zip(blocks, clips, strict=True))
    zero_branches(model)
    assert all(torch.equal(block(x), x) for block, x in zip(blocks, clips, strict=True))
    assert any(p.abs().max() > 0 for p in blocks[0].parameters() if p.ndim > 1)


def test_times_are_interpolated_between_the_first_and_the_last():
    times = torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
    resized = resize_embedding("temporal.time_embed", times, torch.Size([5, 2]))
    torch.testing.assert_close(resized[:, 0], torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0]))
    assert (resized[:, 1] == 5).all()
    assert torch.equal(resize_embedding("time_embed", times, torch.Size([1, 2])), times[-1:])


def test_positions_keep_their_rows_and_columns_and_are_smoothed():
    """A third of the columns are 1: so is the mean of what takes the place of three of them."""
    column = torch.arange(9).expand(9, 9)
    grid = torch.stack([(column % 3 == 1).float(), column.T.float()], dim=-1).view(1, 81, 2)
    resized = resize_embedding("pos_embed", grid, torch.Size([1, 9, 2])).view(3, 3, 2)
    assert (resized[..., 0] - 1 / 3).abs().max() < 0.1
    assert (resized[..., 1] - torch.tensor([[1.0], [4.0], [7.0]])).abs().max() < 0.1
