"""What models refuse, in one line that names the argument, and what they take."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

import ivcl_fast
from ivcl_fast import IVCLConfig, kernels, reference, supervised
from tests.models.test_model import CFG, SIZES, video


def test_bad_arguments_are_named():
    for package in (reference, ivcl_fast):
        with pytest.raises(ValueError, match=r"^video: "):
            package.IVCL(CFG)(video()[:, :2])
        with pytest.raises(ValueError, match=r"^num_classes: .*got 0$"):
            package.IVCLClassifier(CFG, 0)
    short = ivcl_fast.IVCL(IVCLConfig.preset("tiny", **SIZES, attention="short"))
    if not kernels.has_kernel(video()):
        with pytest.raises(ValueError, match="backend: 'short' cannot run here: "):
            short(video())


def int64(shape: list[int], *values: int) -> torch.Tensor:
    return torch.tensor(values).expand(shape)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("seed", 3, "expected int64 [2], got int (not a tensor)"),
        ("seed", torch.zeros(2), "expected int64 [2], got float32 [2]"),
        ("seed", int64([3], 0), "expected int64 [2], got int64 [3]"),
        ("ids_keep", torch.zeros(2, 3, 4), "expected int64 [2, 3, 4], got float32 [2, 3, 4]"),
        ("ids_keep", int64([2, 3, 2], 3, 16), "expected distinct ids of 0 to 15"),
        ("ids_keep", int64([2, 3, 2], 3, 3), "expected distinct ids of 0 to 15"),
        ("query", int64([2], 0), "expected int64 [2, 2], got int64 [2]"),
        ("query", int64([2, 2], 0, 3), "expected distinct ids of 0 to 2"),
        ("query", int64([2, 2], 1, 1), "expected distinct ids of 0 to 2"),
    ],
)
def test_bad_masks_are_named(name, value, reason):
    for package in (reference, ivcl_fast):
        with pytest.raises(ValueError) as error:
            package.IVCL(CFG)(video(), **{name: value})
        assert str(error.value).startswith(f"{name}: {reason}")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (video().float(), "or float32 in [0, 1], got values from 0 to 255"),
        (video().float() / 127.5 - 1, "or float32 in [0, 1], got values from -1 to 1"),
        (video().bfloat16(), "got values from 0 to 25"),
        (torch.full((2, 3, 3, 16, 16), torch.nan), "got values from nan to nan"),
        (video().numpy(), "got ndarray (not a tensor)"),
    ],
)
def test_pixels_out_of_range_are_refused(wrong, reason):
    labels = IVCLConfig.preset("tiny", **SIZES, objective="detection")
    for net in (
        reference.IVCL(CFG), reference.IVCLClassifier(CFG), supervised.Supervised(labels, 2),
        ivcl_fast.IVCL(CFG), ivcl_fast.IVCLClassifier(CFG), ivcl_fast.Supervised(labels, 2),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^video: [^\n]*$") as error:
            net(wrong)
        assert reason in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (int64([1, 4, 3], 0), "expected int64 [2, clips of a video, 3], got int64 [1, 4, 3]"),
        (int64([2, 4, 3], 0).int(), "got int32 [2, 4, 3]"),
        (int64([2, 4, 3], 5), "expected values of 0 to 4"),
        (torch.full((2, 4, 3), -1), "expected values of 0 to 4"),
    ],
)
def test_a_bad_frame_index_is_named(wrong, reason):
    five = video().repeat(1, 2, 1, 1, 1)[:, :5]
    for net in (reference.IVCLClassifier(CFG), ivcl_fast.IVCLClassifier(CFG)):
        with pytest.raises(ValueError, match=r"^frame_index: [^\n]*$") as error:
            net(five, wrong)
        assert reason in str(error.value)
        with pytest.raises(ValueError, match=r"^video: .* got uint8 \[2, 5, 3, 16, 8\]$"):
            net(five[..., :8], torch.zeros(2, 4, 3, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(2, 3, 5, 32), (2, 4, 2, 32), (2, 3, 2, 31), (2, 3, 16, 16)])
def test_slots_of_other_sizes_are_named(shape):
    """So is a video without a batch dimension, which has as many dimensions."""
    expected = f"slots, float [B, 3, {CFG.num_slots}, {CFG.embed_dim}]"
    for net in (reference.IVCLClassifier(CFG), ivcl_fast.IVCLClassifier(CFG)):
        with pytest.raises(ValueError, match=r"^video: [^\n]*got float32 \[2, ") as error:
            net(torch.zeros(shape))
        assert expected in str(error.value)
    joint = IVCLConfig.preset("tiny", **SIZES, objective="joint")
    with pytest.raises(ValueError, match=r"^video: .* got float32 "):
        ivcl_fast.IVCLClassifier(joint)(torch.zeros(2, 3, joint.num_slots, joint.embed_dim))
    index = torch.full((2, 1, 3), 3)
    with pytest.raises(ValueError, match=r"^frame_index: expected values of 0 to 2"):
        ivcl_fast.IVCLClassifier(CFG)(torch.zeros(2, 3, CFG.num_slots, CFG.embed_dim), index)


def test_values_are_not_looked_at_where_that_would_cost_a_graph_or_a_wait():
    torch.compiler.reset()
    fast, masks = ivcl_fast.IVCL(CFG), (int64([2, 3, 2], 3, 7), int64([2, 2], 0, 2))
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    pixels = video().float() / 255
    torch.testing.assert_close(compiled(pixels, *masks).pred, fast(pixels, *masks).pred)
    with FakeTensorMode() as mode:
        CFG.check_video(mode.from_tensor(pixels))
        CFG.check_masks(2, *map(mode.from_tensor, masks), None)
    CFG.check_video(pixels.to("meta"))
    CFG.check_masks(2, *(mask.to("meta") for mask in masks), None)
    torch.func.vmap(lambda clips: CFG.check_video(clips) or clips)(pixels[None])
