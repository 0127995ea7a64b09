"""Training metadata in model cards, written after training and read by later runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ivcl_fast.data.registry import Synthetic, parse_source
from ivcl_fast.errors import UserError
from ivcl_fast.models.backbone import has_public_name
from ivcl_fast.models.timm_weights import is_timm
from ivcl_fast.models.weights import CONFIG, read_config, weights_file
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.settings import TrainConfig

TRAINING_VIDEOS = "training videos"
"""Metadata key: number of synthetic CATER's first videos that the model was trained on."""


def describe_training(
    config: TrainConfig,
    stage: str,
    schedule: Schedule,
    init: str,
    last_frames: int,
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a stage that started from ``init``; ``last_frames``: clips in its first part."""
    stages, source = config.stages, config.data.source
    public = init == "random" or has_public_name(init)  # other sources are local paths
    labelled = stage != "pretrain"
    which = "single" if stages.frame_labels else "last"
    earlier = Schedule(last_frames, batch_size=schedule.batch_size)
    training = {
        "stage": stage,
        "data": source if source.startswith("synthetic") else source.partition(":")[0],
        "task": config.data.task if labelled else config.model.objective,
        "preset": config.preset,
        "initial weights": init if public else "a pretrained model",
        "clips seen": schedule.clips_seen,
        "batch size": schedule.batch_size,
        "optimizer": schedule.optimizer,
        "peak learning rate": schedule.lr,
        "seed": config.seed,
        f"{which} frames seen before": earlier.clips_seen if last_frames else None,
        "encoder": "frozen" if stage == "finetune" and stages.freeze_encoder else None,
        "labels": "those of all frames" if labelled and stages.frame_labels else None,
        "label fraction": stages.label_fraction if labelled and stages.label_fraction < 1 else None,
        "frame stride": config.data.frame_stride or None,
        "seconds per clip": config.data.clip_seconds or None,
        "crop": config.data.crop if config.data.crop != "none" else None,
    }
    if numbers_videos(source):
        training[TRAINING_VIDEOS] = max(config.data.train_videos, videos_seen(init))
    training |= {f"scores on {split}": values or None for split, values in scores.items()}
    return {name: value for name, value in training.items() if value is not None}


def numbers_videos(source: str) -> bool:
    """Return whether ``source`` is synthetic CATER, whose scenes depend only on the video's number.

    The validation videos of a small set are training videos of a larger one.
    """
    place = parse_source(source)[1]
    return isinstance(place, Synthetic) and place.format == "cater"


def videos_seen(init: str) -> int:
    """Return how many of synthetic CATER's videos ``init`` was trained on, 0 if unknown."""
    if init == "random" or is_timm(init):
        return 0
    try:
        record = read_config(weights_file(init).parent / CONFIG).get("training")
    except UserError:  # weights without a config, or deleted weights of a finished stage
        return 0
    return int((record or {}).get(TRAINING_VIDEOS, 0))


def measured_videos_seen(config: TrainConfig) -> int:
    """Return how many validation videos the initial weights of a run were trained on."""
    data = config.data
    if not numbers_videos(data.source):
        return 0
    return min(max(0, videos_seen(config.stages.init) - data.train_videos), data.val_videos)
