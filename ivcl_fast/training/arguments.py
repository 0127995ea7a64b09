"""Parsing the flags of ``ivcl_fast.train`` to its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivcl_fast import command
from ivcl_fast.config import FieldError, IVCLConfig
from ivcl_fast.data.registry import (
    check_crop,
    check_frame_labels,
    check_frame_stride,
    check_mirror,
    clip_frames,
    find_task,
)
from ivcl_fast.errors import UserError, flag
from ivcl_fast.models.backbone import default_sizes
from ivcl_fast.training.settings import CHANGEABLE, TrainConfig, flatten, load_settings

QUICK: dict[str, Any] = dict(
    quick=True, pretrain_clips=96, finetune_clips=64, train_videos=48, val_videos=16, batch_size=16
)
"""Defaults under ``--quick``."""


@dataclass(frozen=True)
class DefaultsFlags:
    """Flags that determine the defaults of other flags."""

    preset: str | None = None
    init: str = "random"
    data: str = "synthetic"
    num_frames: int = 0
    """0: not given."""
    quick: bool = False
    resume: Path | None = None


class UncheckedModel(IVCLConfig):
    """Sizes and objective of the model."""  # a heading in --help

    def __post_init__(self) -> None:
        """Accept all values: an error here would reach the user without the name of the flag."""


def parse(arguments: Sequence[str], description: str | None = None) -> TrainConfig:
    """Parse flags, such as ``["--preset", "base64"]``.

    ``description``: text above the flags in ``--help``. Raises :class:`UserError` for a value that
    is not accepted, and ``SystemExit`` for an unknown flag and after ``--help``.
    """
    flags, _ = command.parse(
        DefaultsFlags, "train", None, arguments, return_unknown_args=True, add_help=False
    )
    resume = flags.resume
    try:
        default = load_settings(resume, resume=resume) if resume else defaults(flags)
        default = default.replace(model=UncheckedModel(**vars(default.model)))
        config = command.parse(TrainConfig, "train", description, arguments, default=default)
        config = config.replace()  # the same, checked
    except FieldError as error:
        raise UserError(f"{flag(error.field)}: {error.message}") from None
    if resume:
        return resumed(config, resume)
    data, model = config.data, config.model
    if (frames := clip_frames(data.source)) and model.num_frames not in (1, frames):
        raise UserError(
            f"--num-frames: {model.num_frames} is not accepted for {data.source}, whose clips have "
            f"{frames} frames; accepted: {frames}, or 1 for the last one alone"
        )
    for kind in config.frame_label_kinds:
        check_frame_labels(data.source, kind, model.num_slots)
    if config.stages.frame_labels and model.readout != "last":
        raise UserError(
            f"--frame-labels: --readout {model.readout} gives no answer for each frame; accepted "
            "with it: --readout last"
        )
    if data.frame_stride:
        check_frame_stride(data.source)
    if data.mirror:
        check_mirror(data.source)
    task = find_task(data.source, data.task)
    if data.crop != "none":
        check_crop(data.source, task, bool(config.frame_label_kinds))
    return config.replace(task=task)


def defaults(flags: DefaultsFlags) -> TrainConfig:
    """Return the settings that apply unless other flags are given."""
    theirs, sizes = (None, {}) if flags.preset else default_sizes(flags.init)
    preset = flags.preset or theirs or TrainConfig.preset
    sizes["num_query_frames"] = IVCLConfig.preset(preset).num_query_frames
    if frames := clip_frames(flags.data):  # the data set determines the number of frames
        sizes |= {"num_frames": frames, "num_query_frames": frames // 2 + 1}
    if flags.num_frames > 0:
        sizes["num_query_frames"] = min(sizes["num_query_frames"], flags.num_frames)
    config = TrainConfig(preset=preset, model=IVCLConfig.preset(preset, **sizes))
    return config.replace(**QUICK) if flags.quick else config


def resumed(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return the settings to continue the run in ``folder`` with: its own, with flags applied.

    Raises :class:`UserError` for flags that would change the run's result.
    """
    accepted = CHANGEABLE - {"resume", "overwrite", "name", "out"}
    before, now = flatten(load_settings(folder)), flatten(config)
    fixed = now.keys() - accepted - {"resume"}
    if different := sorted(name for name in fixed if now[name] != before[name]):
        raise UserError(
            f"{', '.join(map(flag, different))}: cannot change when a run is resumed; accepted "
            f"with --resume: {', '.join(map(flag, sorted(accepted)))}"
        )
    return config.replace(resume=None)
