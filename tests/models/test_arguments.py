"""What models refuse, in one line that names the argument, and what they take."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

import ivcl_fast
from ivcl_fast import IVCLConfig, reference
from tests.models.test_model import CFG, SIZES, video


def int64(shape: list[int], *values: int) -> torch.Tensor:
    return torch.tensor(values).expand(shape)


FIVE = video().repeat(1, 2, 1, 1, 1)[:, :5]
SLOTS = CFG.num_slots, CFG.embed_dim


@pytest.mark.parametrize("package", [reference, ivcl_fast])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("video", video()[:, :2]), ("video", video().float()),
        ("video", video().float() / 127.5 - 1), ("video", video().numpy()),
        ("seed", 3), ("seed", torch.zeros(2)), ("seed", int64([3], 0)),
        ("ids_keep", int64([2, 2], 3, 7)), ("query", int64([2], 0)),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_argument_of_pretraining_is_named(name, value, package):
    with pytest.raises(ValueError, match=rf"^{name}: expected [^\n]*$"):
        package.IVCL(CFG)(**{"video": video()} | {name: value})


@pytest.mark.parametrize("package", [reference, ivcl_fast])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("video", (torch.full((2, 3, 3, 16, 16), torch.nan),)),
        ("video", (FIVE[..., :8], int64([2, 4, 3], 0))), ("video", (torch.zeros(2, 4, *SLOTS),)),
        ("video", (torch.zeros(3, 3, 16, 16),)), ("frame_index", (FIVE, int64([1, 4, 3], 0))),
        ("frame_index", (FIVE, int64([2, 4, 3], 0).int())),
    ],
)  # fmt: skip
def test_a_bad_argument_of_a_classifier_is_named(name, arguments, package):
    with pytest.raises(ValueError, match=rf"^{name}: expected [^\n]*$"):
        package.IVCLClassifier(CFG)(*arguments)


@pytest.mark.parametrize("package", [reference, ivcl_fast])
def test_a_bad_argument_of_a_model_is_named(package):
    mean = IVCLConfig.preset("tiny", **SIZES, readout="mean")
    with pytest.raises(ValueError, match=r"^every_frame: .*got 'mean'$"):
        package.IVCLClassifier(mean, 5)(video(), every_frame=True)
    with pytest.raises(ValueError, match=r"^num_classes: .*got 0$"):
        package.IVCLClassifier(CFG, 0)


def test_values_are_not_looked_at_where_that_would_cost_a_graph_or_a_wait():
    pixels = video().float() / 255
    with FakeTensorMode() as mode:
        CFG.check_video(mode.from_tensor(pixels))
    torch.func.vmap(lambda clips: CFG.check_video(clips) or clips)(pixels[None])
