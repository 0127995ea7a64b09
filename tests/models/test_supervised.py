"""The supervised baselines: what they learn from, and what they start from."""

from __future__ import annotations

import pytest
import torch

import ivcl_fast
from ivcl_fast import IVCLConfig, reference, supervised
from tests.models.test_model import SIZES, video

LABELS = IVCLConfig.preset("tiny", **SIZES, objective="classification")
PACKAGES = pytest.mark.parametrize("package", [supervised, ivcl_fast])


@PACKAGES
def test_labels_of_a_frame_are_read_from_all_of_its_slots(package):
    """From their mean: every slot has the same weight."""
    model = package.Supervised(LABELS, 7)
    slots = model.encoder.slots(reference.patch_rows(video(), LABELS))
    assert slots.shape == (2, 3, LABELS.num_slots, LABELS.embed_dim) and LABELS.num_slots > 1
    torch.testing.assert_close(model(video()), model.label_head(slots).mean(dim=2))


@PACKAGES
def test_a_label_of_an_object_is_read_from_its_slot(package):
    cfg = IVCLConfig.preset("tiny", **SIZES, objective="objects")
    model = package.Supervised(cfg, 7)
    slots = model.encoder.slots(reference.patch_rows(video(), cfg))
    torch.testing.assert_close(model(video()), model.slot_head(slots))
