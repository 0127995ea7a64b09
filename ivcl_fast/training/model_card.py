"""What the card of a trained model says about its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ivcl_fast.models.backbone import has_public_name
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.settings import TrainConfig


def describe_training(
    config: TrainConfig,
    stage: str,
    schedule: Schedule,
    init: str,
    last_frames: int,
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a stage that started from the weights ``init``.

    ``last_frames``: how many its first part saw. ``scores``: those measured at its end, by split.
    """
    stages, source = config.stages, config.data.source
    public = init == "random" or has_public_name(init)  # others are paths on this machine
    training = {
        "stage": stage,
        "data": source if source.startswith("synthetic") else source.partition(":")[0],
        "task": config.data.task if stage != "pretrain" else config.model.objective,
        "preset": config.preset,
        "initial weights": init if public else "a pretrained model",
        "clips seen": schedule.clips_seen,
        "batch size": schedule.batch_size,
        "optimizer": schedule.optimizer,
        "peak learning rate": schedule.lr,
        "seed": config.seed,
    }
    if last_frames:
        which = "single" if stages.frame_labels else "last"
        training[f"{which} frames seen before"] = last_frames
    if stage == "finetune" and stages.freeze_encoder:
        training["encoder"] = "frozen"
    if stage != "pretrain" and stages.frame_labels:
        training["labels"] = "those of all frames"
    if stage != "pretrain" and stages.label_fraction < 1:
        training["label fraction"] = stages.label_fraction
    if config.data.frame_stride:
        training["frame stride"] = config.data.frame_stride
    if config.data.crop != "none":
        training["crop"] = config.data.crop
    return training | {f"scores on {split}": values for split, values in scores.items() if values}
