"""Slot attention against attention written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ivcl_fast import IVCL, IVCLClassifier, SlotAutoencoder, reference
from ivcl_fast.analysis import attention_maps
from tests.support.small_models import config, random_video, sharpened

CHOICES = [
    dict(objective="ivcl", readout="cls"), dict(objective="ivcl", depth=1), dict(objective="mae"),
    dict(objective="joint"), dict(objective="joint", readout="cls"),
]  # fmt: skip


@pytest.fixture
def video() -> Tensor:
    return random_video(clips=2)


def attention_by_hand(model: Any, clip: Tensor) -> list[Tensor]:
    """Every block's attention between all tokens of one clip, ``[heads, L, L]``.

    Tokens are those of all frames, behind a cls token if the encoder has one; between tokens that
    do not see each other it is 0.
    """
    cfg, encoder = model.cfg, model.encoder
    rows = reference.patchify(clip, cfg.patch_size).float() / 255
    pixels = (rows - cfg.pixel_mean) / cfg.pixel_std  # [T, N, 3 * P * P]
    weight, bias = encoder.patch_embed["proj"].parameters()
    patches = pixels @ weight.flatten(1).T + bias + encoder.pos_embed[0]
    slots = encoder.slot_tokens.expand(len(rows), -1, -1)
    x = torch.cat([slots, patches], dim=1)  # [T, S + N, D]
    apart = torch.block_diag(*[torch.ones(x.shape[1], x.shape[1])] * len(x)) == 0
    if cfg.objective == "joint":
        x = x + encoder.time_embed[:, None]
    x = x.flatten(0, 1)
    cls_token = getattr(model, "cls_token", None)
    if cfg.objective == "joint":
        x = x if cls_token is None else torch.cat([cls_token[0], x])
        apart = torch.zeros(len(x), len(x), dtype=torch.bool)
    found = []
    for block in encoder.blocks:
        q, k, v = (
            part.chunk(cfg.num_heads, dim=-1)
            for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        )
        heads = []
        for queries, keys in zip(q, k, strict=True):
            scores = queries @ keys.T / queries.shape[-1] ** 0.5
            heads.append(scores.masked_fill(apart, float("-inf")).softmax(dim=-1))
        mixed = torch.cat([a @ values for a, values in zip(heads, v, strict=True)], dim=-1)
        x = x + block.attn.proj(mixed)
        x = x + block.mlp(block.norm2(x))
        found.append(torch.stack(heads))
    return found


def slots_to_patches(cfg: Any, matrix: Tensor) -> Tensor:
    """``[L, L]`` between all tokens of a clip to ``[T, S, N]``: of the same frame."""
    width = cfg.num_slots + cfg.num_patches
    first = len(matrix) % width  # a cls token
    maps = []
    for t in range(cfg.num_frames):
        slots = slice(first + t * width, first + t * width + cfg.num_slots)
        patches = slice(slots.stop, first + (t + 1) * width)
        maps.append(matrix[slots, patches])
    return torch.stack(maps)


@pytest.mark.parametrize("kind", [reference.IVCL, reference.IVCLClassifier])
@pytest.mark.parametrize("choices", CHOICES, ids=str)
@torch.no_grad()
def test_last_block(video: Tensor, kind: Any, choices: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = sharpened(kind(config(**choices)))
    maps = attention_maps.slot_attention(model, video)
    assert maps.shape == (2, 5, 2, 16) and maps.dtype == torch.float32
    for clip, found in zip(video, maps, strict=True):
        last = attention_by_hand(model, clip)[-1]
        expected = slots_to_patches(model.cfg, last.mean(0))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (maps.sum(-1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("kind", [SlotAutoencoder, IVCLClassifier])
@torch.no_grad()
def test_slots_that_compete_attend_to_what_they_take_in(video: Tensor, kind: Any) -> None:
    """What a slot has seen in the last round is the mean of the values with these weights."""
    torch.manual_seed(0)
    model = sharpened(kind(config(objective="slot_attention")))
    part, seen, values = model.encoder.slot_attention, [], []
    part.update.register_forward_hook(lambda part, args, out: seen.append(args[0]))
    part.value.register_forward_hook(lambda part, args, out: values.append(out))
    maps = attention_maps.slot_attention(model, video)
    assert maps.shape == (2, 5, 2, 16) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 5, 2))
    model.encoder.slots(reference.patchify(video, 4))
    taken = seen[-1].view(2, 5, 2, -1)
    torch.testing.assert_close(maps @ values[-1], taken, rtol=1e-4, atol=1e-4)
    part.key.weight *= 1000  # so that a slot gets nothing of a frame
    sums = attention_maps.slot_attention(model, video).sum(-1)
    torch.testing.assert_close(sums, torch.ones(2, 5, 2))


@pytest.mark.parametrize("kind", ["IVCL", "IVCLClassifier"])
def test_fast_models_look_where_the_reference_does(video: Tensor, kind: str) -> None:
    torch.manual_seed(0)
    slow = sharpened(getattr(reference, kind)(config()))
    fast = {"IVCL": IVCL, "IVCLClassifier": IVCLClassifier}[kind](config())
    fast.load_state_dict(slow.state_dict())
    ours, theirs = (attention_maps.slot_attention(model, video) for model in (fast, slow))
    torch.testing.assert_close(ours, theirs)


# --- Collapse ------------------------------------------------------------------------------------


def one_frame(*maps: list[float]) -> Tensor:
    """Maps of a frame's slots as ``[B=1, T=1, S, N]``."""
    return torch.tensor([[maps]])


@pytest.mark.parametrize(
    ("maps", "overlap", "entropy"),
    [
        (one_frame([1, 0, 0, 0], [1, 0, 0, 0]), 1.0, 0.0),  # identical
        (one_frame([1, 0, 0, 0], [0, 0, 1, 0]), 0.0, 0.0),  # disjoint
        (one_frame([0.25] * 4, [0.25] * 4), 1.0, 1.0),  # even
        (one_frame([0.1] * 4, [0.2] * 4), 1.0, 1.0),  # the rest went to slots
        (one_frame([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]), 0.0, 0.5),
        # H(3/4, 1/4) = 0.811278 bits, less half of H(1) + H(1/2, 1/2) = 1 bit
        (one_frame([1, 0, 0, 0], [0.5, 0.5, 0, 0]), 1 - (0.811278 - 0.5), 0.25),
        # three slots, two of them alike: one pair of three
        (one_frame([1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]), 1 / 3, 0.0),
        (one_frame([0, 0, 0, 0], [0, 0, 0, 0]), 1.0, 1.0),  # nothing on patches at all
    ],
)
def test_known_maps(maps: Tensor, overlap: float, entropy: float) -> None:
    assert attention_maps.slot_overlap(maps).item() == pytest.approx(overlap, abs=1e-5)
    assert attention_maps.map_entropy(maps).item() == pytest.approx(entropy, abs=1e-5)


def test_collapse_is_averaged_over_frames_and_clips_with_an_interval() -> None:
    alike, apart = one_frame([1.0, 0.0], [1.0, 0.0]), one_frame([1.0, 0.0], [0.0, 1.0])
    half = torch.cat([alike, apart], dim=1)  # two frames
    assert attention_maps.slot_overlap(half).tolist() == pytest.approx([0.5])
    maps = torch.cat([half] * 10 + [alike.expand(-1, 2, -1, -1)] * 10)
    score = attention_maps.slot_collapse(maps)["overlap"]
    assert score.value == pytest.approx(0.75) and score.chance == 1.0
    assert 0.5 < score.low < 0.75 < score.high < 1.0
    alone = attention_maps.slot_collapse(half)["overlap"]  # one clip says little
    assert alone.low < 0.2 and alone.high > 0.8


def test_attention_on_an_object_is_relative_to_the_mean_of_its_frames() -> None:
    maps = torch.tensor([[1.0, 3.0], [9.0, 9.0], [2.0, 6.0]])
    assert attention_maps.snitch_attention(maps, (1, None, 0)) == pytest.approx((1.5 + 0.5) / 2)
