"""The models and batch sizes of all benchmarks: large ones on a GPU, small ones on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.measure import DEVICE
from ivcl_fast import IVCLConfig


class Batch(NamedTuple):
    """A model and the number of clips or images of a training step."""

    cfg: IVCLConfig
    size: int
    unit: str = "clips"


def target(preset: str, **overrides: Any) -> IVCLConfig:
    """Return the configuration of the GPU targets."""
    return IVCLConfig.preset(preset, mask_ratio=0.875, num_query_frames=1, **overrides)


MAE = IVCLConfig.preset(
    "base224", objective="mae", num_frames=1, num_query_frames=1, num_slots=1, decoder_heads=16
)
"""Image MAE with ViT-B/16 and its decoder as a model of ours; the slot is the class token."""
SLOTS = IVCLConfig.preset(
    "tiny", objective="slot_attention", num_slots=11, patch_size=4, depth=2, num_frames=8,
    num_query_frames=4,
)  # fmt: skip
"""Slot attention with the settings of the table in docs/guide/object_slots.md."""

ON_GPU = DEVICE.type == "cuda"
BATCHES = (
    {
        "base64": Batch(target("base64"), 88),
        "base224": Batch(target("base224"), 32),
        "mae": Batch(MAE, 256, "images"),
    }
    if ON_GPU
    else {
        "tiny": Batch(IVCLConfig.preset("tiny"), 8),
        "small": Batch(IVCLConfig.preset("small"), 8),
        "base64": Batch(IVCLConfig.preset("base64"), 8),
        "slot attention": Batch(SLOTS, 4),
    }
)
"""Training steps to time; ops, blocks and data have the sizes of the first one."""
STAGE_CLIPS = [256, 88, 16]
"""Batch sizes of the trainer's steps of ``base64`` on a GPU."""
STAGE_STEPS = 24
REHEARSAL = False
"""Whether sizes are tiny and each benchmark has one round, to run the code of a GPU anywhere."""


def rehearse() -> None:
    """Begin a rehearsal."""
    global STAGE_STEPS, REHEARSAL
    tiny = target(
        "tiny", image_size=16, embed_dim=32, num_heads=2, depth=1, temporal_depth=1,
        decoder_dim=32, decoder_heads=2, decoder_depth=1, num_frames=3,
    )  # fmt: skip
    BATCHES.clear()
    BATCHES.update({name: Batch(tiny, 2) for name in ("base64", "base224")})
    one_frame = replace(tiny, objective="mae", num_frames=1, num_slots=1, mask_ratio=0.75)
    BATCHES["mae"] = Batch(one_frame, 2, "images")
    STAGE_CLIPS[:] = 1, 2
    STAGE_STEPS, REHEARSAL = 4, True


def mae() -> Batch:
    """Return the batch of image MAE."""
    return BATCHES.get("mae", Batch(MAE, 8, "images"))


def first() -> Batch:
    """Return the first batch."""
    return next(iter(BATCHES.values()))
