"""Models of other packages: image MAE's weights in our model, and timm's ViT-B on one image."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import accelerate, mae, sizes
from benchmarks.measure import Benchmark, measure
from ivcl_fast import reference
from tests.benchmarks.conftest import rehearsal

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


def test_the_public_code_has_these_keys():
    blocks = {"blocks": sizes.MAE.depth, "decoder_blocks": sizes.MAE.decoder_depth}
    keys = [f"{b}.{i}.{part}" for b, depth in blocks.items() for i in range(depth) for part in PART]
    theirs = {key: torch.zeros(1, 197) for key in keys} | dict.fromkeys(AROUND, torch.zeros(1, 197))
    theirs |= {"decoder_pred.weight": torch.zeros(768, 2), "decoder_pred.bias": torch.arange(768)}
    ours = mae.to_our_keys(theirs)
    with torch.device("meta"):
        assert ours.keys() == reference.IVCL(sizes.MAE).state_dict().keys()
    # Its patches are rows of pixels, each with its colours; ours are colours, each with its pixels.
    assert ours["decoder.pred.bias"][:2].tolist() == [0, 3]


@pytest.mark.usefixtures(rehearsal.__name__)
def test_hugging_face_vit_mae():
    """The set-up compares the losses, with weights that are not those of its initialisation."""
    rows = []
    with torch.compiler.set_stance("force_eager"):
        measure(mae.hugging_face_benchmark(), rows.append)
    assert len(rows) >= 3 and all(row["seconds"] > 0 for row in rows)


@pytest.mark.parametrize("mode", accelerate.MODES)
def test_a_short_sequence(mode: str) -> None:
    setup, rows = partial(accelerate.setup, mode, 17, 1), []
    measure(Benchmark("ViT-B", accelerate.NAMES, setup, rounds=1), rows.append)
    assert [row["name"] for row in rows] == [*accelerate.NAMES]
    assert all(row["seconds"] > 0 for row in rows)
