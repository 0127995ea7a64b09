"""The public MAE code as a baseline: what can be checked without a copy of it."""

from __future__ import annotations

import torch

from benchmarks import public_mae
from ivcl_fast import reference

PART = (
    "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight",
    "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias",
    "mlp.fc2.weight", "mlp.fc2.bias",
)  # fmt: skip
AROUND = (
    "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight",
    "norm.bias", "decoder_embed.weight", "decoder_embed.bias", "mask_token", "decoder_pos_embed",
    "decoder_norm.weight", "decoder_norm.bias", "decoder_pred.weight", "decoder_pred.bias",
)  # fmt: skip


def test_its_keys_become_ours():
    blocks = {"blocks": public_mae.MAE.depth, "decoder_blocks": public_mae.MAE.decoder_depth}
    keys = [f"{b}.{i}.{part}" for b, depth in blocks.items() for i in range(depth) for part in PART]
    theirs = {key: torch.zeros(1, 197) for key in keys} | dict.fromkeys(AROUND, torch.zeros(1, 197))
    theirs |= {"decoder_pred.weight": torch.zeros(768, 2), "decoder_pred.bias": torch.arange(768)}
    ours = public_mae.to_our_keys(theirs)
    with torch.device("meta"):
        assert ours.keys() == reference.IVCL(public_mae.MAE).state_dict().keys()
    assert ours["encoder.pos_embed"].shape == ours["decoder.pos_embed"].shape == (1, 196)
    # Its patches are rows of pixels, each with its colours; ours are colours, each with its pixels.
    assert ours["decoder.pred.bias"][:2].tolist() == [0, 3]
    assert ours["decoder.pred.bias"][256:258].tolist() == [1, 4]


def test_masks_the_given_patches():
    class Model:
        pass

    model, x = Model(), torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    keep, mask = torch.tensor([[1], [3]]), torch.tensor([[0, 2, 3], [0, 1, 2]])
    public_mae.set_masks(model, keep, mask)
    visible, hidden, restore = model.random_masking(x, 0.75)
    assert torch.equal(visible[:, 0], x[[0, 1], [1, 3]])
    order = torch.cat([keep, mask], dim=1)
    assert torch.equal(order.gather(1, restore), torch.arange(4).expand(2, 4))
    assert torch.equal(hidden.gather(1, keep), torch.zeros(2, 1))
    assert hidden.sum() == 6
