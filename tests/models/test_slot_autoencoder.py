"""Slots that compete for patches: what they share out, and what they draw on a background."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ivcl_fast
from ivcl_fast import IVCLConfig, reference, slot_autoencoder
from ivcl_fast.models.slot_attention import GRUCell
from tests.models.test_model import SIZES, video

CFG = IVCLConfig.preset("tiny", **SIZES | {"num_slots": 4}, objective="slot_attention")
VIDEO = dataclasses.replace(CFG, video_slots=True)
FEATURES = dataclasses.replace(CFG, target_dim=6)
PACKAGES = pytest.mark.parametrize("package", [slot_autoencoder, ivcl_fast])


@PACKAGES
def test_a_frame_is_a_mixture_of_what_its_slots_draw_and_a_background(package):
    torch.manual_seed(0)
    model = package.SlotAutoencoder(CFG)
    torch.nn.init.normal_(model.decoder.background)
    torch.nn.init.normal_(model.decoder.change.weight)
    drawn, mix = [], model.decoder.mix
    model.decoder.mix = lambda x, true: drawn.append(x) or mix(x, true)
    out, pixels = model(video()), CFG.patch_size**2
    assert out.pred.shape == (2, 3, 16, 3 * pixels)
    assert out.shares.shape == (2, 3, 5, 16, pixels)
    (of_slots,) = (x.view(2, 3, 4, 16, 4, pixels) for x in drawn)
    frames = reference.patchify(video().float() / 255, CFG.patch_size)
    true = (frames - CFG.pixel_mean) / CFG.pixel_std
    change = model.decoder.background_change(true).view(2, 3, 1, 16, 3, pixels)
    assert not torch.allclose(change[:, 0], change[:, 1])
    background = model.decoder.background.expand(2, 3, 1, -1, -1, -1)
    parts = torch.cat([of_slots[..., :3, :], background], dim=2) + change
    claims = torch.cat([of_slots[..., 3, :], torch.full((2, 3, 1, 16, pixels), 3.0)], dim=2)
    torch.testing.assert_close(out.shares, claims.softmax(dim=2))
    shares = out.shares.unsqueeze(-2)
    torch.testing.assert_close(out.pred, (shares * parts).sum(dim=2).flatten(-2))
    true = true.unflatten(-1, (3, pixels))
    of_mixture = (out.pred.unflatten(-1, (3, pixels)) - true).square().mean()
    of_parts = (shares * (parts - true.unsqueeze(2)).square()).sum(dim=2).mean()
    of_background = (parts[:, :, -1] - true).abs().mean()
    torch.testing.assert_close(out.loss, 0.9 * of_mixture + 0.1 * of_parts + 0.2 * of_background)


@PACKAGES
def test_features_are_a_mixture_too(package):
    torch.manual_seed(0)
    model = package.SlotAutoencoder(FEATURES)
    torch.nn.init.normal_(model.decoder.background)
    targets = torch.randn(2, 3, 16, 6)
    out = model(video(), targets.half())
    assert out.pred.shape == targets.shape and out.shares.shape == (2, 3, 5, 16, 1)
    rows = model.rows(video())
    slots, share, _ = model.encoder.compete(rows, reference.all_patches(rows))
    centers = model.decoder.centers(share.flatten(0, 1))
    drawn = model.decoder.draw(slots.flatten(0, 1), centers)
    shares = F.pad(drawn[..., 6], (0, 0, 0, 1), value=3.0).softmax(dim=1)  # [F, S+1, N]
    torch.testing.assert_close(out.shares.flatten(0, 1)[..., 0], shares)
    background = model.decoder.background[None, None, ..., 0].expand(6, -1, -1, -1)
    parts = torch.cat([drawn[..., :6], background], dim=1)
    torch.testing.assert_close(out.pred.flatten(0, 1), (shares[..., None] * parts).sum(dim=1))
    assert out.loss > (out.pred - targets).square().mean() > 0
    assert model(video()).loss.isnan()


@PACKAGES
def test_slots_decode_relative_to_their_centers(package):
    torch.manual_seed(0)
    decoder = package.SlotAutoencoder(CFG).decoder
    share = torch.zeros(1, 2, 16)
    share[0, [0, 0, 1], [4, 5, 10]] = torch.tensor([0.1, 0.2, 1.0])  # of 4x4 patches
    centers = decoder.centers(share)
    expected = torch.tensor([[[-0.25, -0.35], [0.25, 0.25]]])  # columns are weighted 1 to 4
    torch.testing.assert_close(centers, expected, atol=1e-3, rtol=0)
    slots, down = torch.randn(1, 2, 32), torch.tensor([0.5, 0.0])  # by a patch
    drawn, below = (decoder.draw(slots, at) for at in (centers, centers + down))
    torch.testing.assert_close(below[:, :, 4:], drawn[:, :, :-4], atol=1e-4, rtol=1e-4)
    decoder.pred.weight.data.zero_()
    logits = decoder.draw(slots, centers)[0, ..., 3 * CFG.patch_size**2 :]
    at = (torch.arange(16) + 0.5) / 8 - 1  # 16x16 pixels
    far = (at[:, None] - centers[0, :, :1, None]) ** 2 + (at - centers[0, :, 1:, None]) ** 2
    pixels = reference.patchify((-16 * far).unsqueeze(1).expand(-1, 3, -1, -1), CFG.patch_size)
    torch.testing.assert_close(logits, pixels[..., : CFG.patch_size**2], atol=1e-3, rtol=1e-3)


@PACKAGES
def test_slots_differ_by_their_first_values_alone(package):
    """Other first values in another order are the same slots in that order, and draw the same."""
    torch.manual_seed(0)
    model = package.SlotAutoencoder(CFG).eval()
    slots, drawn = model.encode(video()), model(video()).pred
    order = torch.tensor([2, 0, 3, 1])
    model.encoder.slot_tokens.data = model.encoder.slot_tokens.data[:, order]
    torch.testing.assert_close(model.encode(video()), slots[:, :, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(video()).pred, drawn, atol=1e-5, rtol=1e-5)


@PACKAGES
@pytest.mark.parametrize("cfg", [CFG, VIDEO])
def test_what_slots_know_of_other_frames(package, cfg):
    """Nothing if frames are separate; in a video, slots of later frames depend on earlier ones."""
    model, frames = package.SlotAutoencoder(cfg), video()
    other = frames.clone()
    other[:, 1] = 255 - other[:, 1]
    before, after = model.encode(frames), model.encode(other)
    changed = [not torch.allclose(before[:, t], after[:, t], atol=1e-4) for t in range(3)]
    assert changed == [False, True, cfg.video_slots]


@PACKAGES
def test_slots_of_a_video_start_from_the_prediction_for_the_frame_before(package):
    torch.manual_seed(0)
    model = package.SlotAutoencoder(VIDEO).eval()
    part, patches = model.encoder.slot_attention, torch.randn(2, 4, 16, 32)
    slots, shares = part(model.encoder.slot_tokens, patches)
    state, expected = model.encoder.slot_tokens.expand(2, -1, -1), []
    for frame in range(4):
        x = part.features(patches[:, frame])
        for _ in range(1 if frame else 3):
            share = (part.query(state) @ part.key(x).mT / 32**0.5).softmax(dim=1)
            weight = share + 1e-6
            seen = weight / weight.sum(dim=2, keepdim=True) @ part.value(x)
            state = part.update(seen, state)
            state = state + part.mlp(state)
        expected.append((part.norm(state), share))
        state = part.predictor(state)
    for ours, theirs in zip((slots, shares), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs, dim=1), atol=1e-5, rtol=1e-5)


def test_slots_are_contrasted_with_all_slots_of_the_next_frame():
    torch.manual_seed(0)
    slots = torch.randn(2, 3, 4, 8)
    losses = []
    for clip, frame, slot in itertools.product(range(2), range(2), range(4)):
        alike = [
            [F.cosine_similarity(slots[clip, frame, slot], other, dim=0) / 0.1 for other in of_clip]
            for of_clip in slots[:, frame + 1]
        ]
        losses.append(torch.tensor(alike).logsumexp(dim=(0, 1)) - alike[clip][slot])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(slot_autoencoder.slot_contrast(slots), expected)
    model, frames = slot_autoencoder.SlotAutoencoder(VIDEO), video()
    with_contrast, encoded = model(frames).loss, model.encode(frames)
    model.cfg = CFG
    alone = model(frames).loss
    contrast = slot_autoencoder.slot_contrast(encoded)
    torch.testing.assert_close(with_contrast, alone + 0.01 * contrast)


def test_the_update_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = GRUCell(8, 8), nn.GRUCell(8, 8)
    ours.load_state_dict(theirs.state_dict())
    x, state = torch.randn(2, 5, 8).requires_grad_(), torch.randn(2, 5, 8).requires_grad_()
    updated, expected = ours(x, state), theirs(x.flatten(0, 1), state.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(updated, expected)
    by, cotangent = (x, state, *ours.parameters()), torch.randn_like(updated)
    expected_by = (x, state, *theirs.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(updated, by, cotangent),
        torch.autograd.grad(expected, expected_by, cotangent),
    )


@PACKAGES
@pytest.mark.parametrize("cfg", [CFG, FEATURES])
def test_what_is_drawn_is_a_picture(package, cfg):
    model = package.SlotAutoencoder(cfg)
    frames, shares = model.draw(video())
    assert frames.shape == (2, 3, 3, 16, 16) and shares.shape == (2, 3, 5, 16, 16)
    assert frames.dtype == shares.dtype == torch.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(2, 3, 16, 16))
    if cfg is FEATURES:
        return
    out = model(video())
    whole = reference.patchify(frames, CFG.patch_size)
    torch.testing.assert_close(whole, (out.pred * CFG.pixel_std + CFG.pixel_mean).clamp(0, 1))
    rows = reference.patchify(shares.unsqueeze(3).expand(-1, -1, -1, 3, -1, -1), CFG.patch_size)
    torch.testing.assert_close(rows[..., : CFG.patch_size**2], out.shares)


def test_a_classifier_goes_on_from_its_encoder(tmp_path):
    model, classifier = ivcl_fast.SlotAutoencoder(CFG), ivcl_fast.IVCLClassifier(CFG, 5)
    model.save_pretrained(tmp_path)
    keys = {f"encoder.{key}" for key in reference.Encoder(CFG).state_dict()}
    assert any(key.startswith("encoder.slot_attention.") for key in keys)
    assert set(classifier.load_pretrained(tmp_path)) == keys
    torch.testing.assert_close(classifier.slots(video()), model.encode(video()))
    with pytest.raises(ValueError, match=r"predictor\..* is only in this model"):
        ivcl_fast.IVCLClassifier(VIDEO, 5).load_pretrained(tmp_path)
    other = ivcl_fast.IVCLClassifier(dataclasses.replace(CFG, objective="ivcl"), 5)
    with pytest.raises(ValueError, match=r"is only there; .*objective slot_attention"):
        other.load_pretrained(tmp_path)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"is only in this model; .*objective ivcl"):
        classifier.load_pretrained(tmp_path / "other")


@pytest.mark.parametrize("cfg", [CFG, VIDEO])
def test_mixed_precision_is_as_exact_as_pytorchs(cfg):
    torch.manual_seed(0)
    plain = slot_autoencoder.SlotAutoencoder(cfg)
    fast, exact = ivcl_fast.SlotAutoencoder(cfg), copy.deepcopy(plain).double()
    fast.load_state_dict(plain.state_dict())
    found = {}
    for name, model in (("plain", plain), ("fast", fast), ("exact", exact)):
        with torch.autocast("cpu", torch.bfloat16, enabled=model is not exact):
            out = model(video())
        out.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[name] = [x.double() for x in (out.pred, out.shares, gradients)]
    for ours, theirs, true in zip(*(found[n] for n in ("fast", "plain", "exact")), strict=True):
        error, allowed = ((x - true).square().mean().sqrt() for x in (ours, theirs))
        assert 0 < error <= 2 * allowed
