"""Parse the flags of ``ivcl_fast.train`` into its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_type_hints

from ivcl_fast import command
from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.features import feature_dim
from ivcl_fast.data.registry import check_frame_labels, check_options, clip_frames, find_task
from ivcl_fast.errors import UserError, flag
from ivcl_fast.models.backbone import default_sizes
from ivcl_fast.models.weights import CONFIG
from ivcl_fast.training.settings import (
    CHANGEABLE,
    OutputConfig,
    TrainConfig,
    load_settings,
    read_settings,
)

QUICK: dict[str, Any] = dict(
    quick=True, pretrain_clips=96, finetune_clips=64, train_videos=48, val_videos=16, batch_size=16
)
"""Defaults under ``--quick``."""

LENGTHS = "--pretrain-clips and --finetune-clips, which count clips"
FLAGS_ELSEWHERE = {
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "steps", "max_steps"), LENGTHS),
    "learning_rate": "--lr and --finetune-lr",
    "dataset": "--data KIND:DIR, such as videos:DIR",
    "output_dir": "--out",
    "num_workers": "--workers",
    "gpus": "torchrun --nproc-per-node=N -m ivcl_fast.train",
}
"""Flags of other programs, and their equivalents here."""

FIRST_FLAGS = (
    "preset", "quick", "config", "source", "task", "train_videos", "val_videos", "stage", "init",
    "pretrain_clips", "finetune_clips", "batch_size", "lr", "finetune_lr",
    "num_frames", "num_slots", "mask_ratio", "readout", "objective", "device", "compile", "seed",
    "out", "name", "resume", "overwrite",
)  # fmt: skip
"""Settings that ``--help`` shows; ``--help-all`` shows all."""


class UncheckedModel(IVCLConfig):
    """Sizes and objective of the model."""  # a heading in --help

    def __post_init__(self) -> None:
        """Accept all values: tyro would print an error without the name of the flag."""


def parse(arguments: Sequence[str], description: str | None = None) -> TrainConfig:
    """Parse flags, such as ``["--preset", "base64"]``; ``description``: text above ``--help``.

    Raises :class:`UserError` for a value that is not accepted, and ``SystemExit`` for an unknown
    flag and after ``--help`` or ``--help-all``.
    """
    given = values_given(arguments)
    for name in given.keys() & FLAGS_ELSEWHERE:
        raise UserError(f"{flag(name)}: expected {FLAGS_ELSEWHERE[name]}")
    resumed = load_settings(Path(given["resume"])) if given.get("resume") else None
    try:
        default = resumed or defaults(given)
        unchecked = dataclasses.replace(default, model=UncheckedModel(**vars(default.model)))
        if {"-h", "--help"}.intersection(arguments):
            show_first_flags(unchecked, description)
        arguments = ["--help" if typed == "--help-all" else typed for typed in arguments]
        config = command.parse(TrainConfig, "train", description, arguments, default=unchecked)
        config = config.replace(model=IVCLConfig(**vars(config.model)))
    except UserError as error:  # of the model's fields, which are flags here
        name, _, message = str(error).partition(": ")
        is_flag = name == "preset" or name in vars(IVCLConfig())
        raise UserError(f"{flag(name)}: {message}" if is_flag else str(error)) from None
    return continued(config, resumed) if resumed else checked(config)


def show_first_flags(default: TrainConfig, description: str | None) -> None:
    """Print the help of :data:`FIRST_FLAGS` and exit."""
    command.join_help_lines(TrainConfig)
    settings = default.flat()
    fields = {}
    for group in (default, *default.groups().values(), IVCLConfig()):
        hints = get_type_hints(type(group), include_extras=True)
        for field in dataclasses.fields(group):
            shown = dataclasses.field(default=settings.get(field.name), metadata=field.metadata)
            fields[field.name] = field.name, hints[field.name], shown
    chosen = dataclasses.make_dataclass("FirstFlags", [fields[name] for name in FIRST_FLAGS])
    about = (description or "").rstrip() + "\n\nUse --help-all to list all flags."
    command.parse(chosen, "train", about, ["--help"])


def values_given(arguments: Sequence[str]) -> dict[str, str]:
    """Return the values of flags as typed, by name of the setting; the last one counts."""
    found = {}
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            found[name.replace("-", "_")] = value if equals else following
    return found


def defaults(given: dict[str, str]) -> TrainConfig:
    """Return the default settings, some of which depend on the flags ``given``."""
    if given.get("config"):
        return settings_of_file(given)
    sizes: dict[str, Any] = {}
    preset = given.get("preset")
    if preset is None:
        preset, sizes = default_sizes(given.get("init", "random"))
    preset = preset or TrainConfig.preset
    sizes["num_query_frames"] = IVCLConfig.preset(preset).num_query_frames
    if frames := clip_frames(given.get("data", "synthetic")):  # the data set determines the number
        sizes |= {"num_frames": frames, "num_query_frames": frames // 2 + 1}
    if (typed := given.get("num_frames", "")).isdecimal() and int(typed) > 0:
        sizes["num_query_frames"] = min(sizes["num_query_frames"], int(typed))
    config = TrainConfig(preset=preset, model=IVCLConfig.preset(preset, **sizes))
    return config.replace(**QUICK) if "quick" in given else config


def settings_of_file(given: dict[str, str]) -> TrainConfig:
    """Return the settings in the file of ``--config``, with the default folder of a new run."""
    if "preset" in given:
        raise UserError("--preset: expected no --config, which sets all sizes, got both")
    file = Path(given["config"])
    place = {"out": OutputConfig.out, "name": None}
    config = read_settings(file / CONFIG if file.is_dir() else file, **place)
    if "data" in given:
        config = config.replace(task="auto")
    return config.replace(**QUICK, last_frame_clips=None) if "quick" in given else config


def checked(config: TrainConfig) -> TrainConfig:
    """Return the settings of a new run with its task filled in; raise :class:`UserError` if the
    data does not allow them."""
    data, model = config.data, config.model
    if (frames := clip_frames(data.source)) and model.num_frames not in (1, frames):
        raise UserError(
            f"--num-frames: expected {frames}, or 1 for the last frame alone, for {data.source}, "
            f"got {model.num_frames}"
        )
    for kind in config.frame_label_kinds:
        check_frame_labels(data.source, kind, model.num_slots)
        if data.mirror:
            raise UserError("--mirror: expected no labels of single frames")
    if config.stages.frame_labels and model.readout != "last":
        raise UserError(f"--frame-labels: expected --readout last, got {model.readout}")
    check_options(data)
    if config.stages.targets != "pixels":
        width = feature_dim(config.stages.targets)
        config = config.replace(model=dataclasses.replace(model, target_dim=width))
    return config.replace(task=find_task(data.source, data.task), config=None)


def continued(config: TrainConfig, run: TrainConfig) -> TrainConfig:
    """Return the settings with which to continue ``run``; refuse flags that change its result."""
    accepted = CHANGEABLE - {"config", "overwrite", "name", "out"}
    before, now = run.flat(), config.flat()
    if different := sorted(name for name in now.keys() - accepted if now[name] != before[name]):
        flags = ", ".join(map(flag, sorted(accepted - {"resume"})))
        raise UserError(
            f"{', '.join(map(flag, different))}: expected with --resume only {flags}, got a change "
            "of the run's result"
        )
    return config.replace(resume=None)
