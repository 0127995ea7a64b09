"""The supervised baselines: what they learn from, and what they start from."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

import ivcl_fast
from ivcl_fast import IVCLConfig, reference, supervised
from ivcl_fast.config import SupervisedObjective
from tests.models.test_model import CFG, SIZES, video

LABELS = IVCLConfig.preset("tiny", **SIZES, objective="classification")
PACKAGES = pytest.mark.parametrize("package", [supervised, ivcl_fast])


@PACKAGES
def test_labels_of_a_frame_are_read_from_all_of_its_slots(package):
    """From their mean: every slot has the same say."""
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


@PACKAGES
@pytest.mark.parametrize("objective", get_args(SupervisedObjective))
def test_it_starts_from_what_ivcl_starts_from(package, objective):
    """From weights of the same distribution and from the same biases."""
    torch.manual_seed(0)
    ours = package.Supervised(IVCLConfig.preset("tiny", **SIZES, objective=objective), 7)
    theirs = reference.IVCL(CFG).encoder.state_dict()
    for key, value in ours.encoder.state_dict().items():
        if value.ndim == 1:
            assert torch.equal(value, theirs[key]), key
        else:
            torch.testing.assert_close(value.std(), theirs[key].std(), rtol=0.2, atol=0, msg=key)


@PACKAGES
def test_a_number_of_classes_is_positive(package):
    with pytest.raises(ValueError, match=r"^num_classes: 0"):
        package.Supervised(LABELS, 0)
