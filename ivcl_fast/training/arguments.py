"""From the command line of ``ivcl_fast.train`` to its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from ivcl_fast.config import PRESETS, FieldError, IVCLConfig
from ivcl_fast.data.registry import check_frame_labels, clip_frames, find_task
from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.training.settings import FREE, TrainConfig, flat, load_settings

T = TypeVar("T")

QUICK: dict[str, Any] = dict(
    quick=True, pretrain_clips=96, finetune_clips=64, train_videos=48, val_videos=16, batch_size=16
)
"""Defaults under ``--quick``."""


@dataclass(frozen=True)
class DefaultsFlags:
    """The flags on which the defaults of other flags depend."""

    preset: str = "tiny"
    data: str = "synthetic"
    num_frames: int | None = None
    quick: bool = False
    resume: Path | None = None


class UncheckedModel(IVCLConfig):
    """Flags of the model: parsed as :class:`IVCLConfig`, and checked when all flags are known.

    tyro reports a bad value as it constructs a config, in its own words and without its flag.
    """

    def __post_init__(self) -> None:
        pass


def parse(arguments: Sequence[str], description: str | None = None) -> TrainConfig:
    """Parse flags, such as ``["--preset", "base64"]``.

    ``description``: the first lines of ``--help``. Raises :class:`UserError` for a value that is
    not accepted, and ``SystemExit`` for an unknown flag and after ``--help``.
    """
    flags, _ = call_tyro(DefaultsFlags, arguments, return_unknown_args=True, add_help=False)
    default = load_settings(flags.resume, resume=flags.resume) if flags.resume else defaults(flags)
    default = dataclasses.replace(default, model=UncheckedModel(**vars(default.model)))
    config = call_tyro(TrainConfig, arguments, default=default, description=description)
    config = dataclasses.replace(config, model=checked_model(config.model))
    config.check()
    if flags.resume:
        return resumed(config, flags.resume)
    data, model = config.data, config.model
    if config.supervises:
        check_frame_labels(data.source, model.objective)
    task = find_task(data.source, data.task)
    return dataclasses.replace(config, data=dataclasses.replace(data, task=task))


def call_tyro(kind: type[T], arguments: Sequence[str], **options: Any) -> Any:
    """Parse ``arguments`` to a ``kind``; only rank 0 prints what is wrong with them."""
    try:
        return tyro.cli(
            kind,
            args=arguments,
            prog="python -m ivcl_fast.train",
            console_outputs=distributed.is_main(),
            **options,
        )
    except SystemExit:  # an unknown flag, or --help
        distributed.let_rank0_report_first()
        raise


def checked_model(model: IVCLConfig) -> IVCLConfig:
    """The model's sizes, checked; raises :class:`UserError` that names the flag of a bad one."""
    try:
        return IVCLConfig(**vars(model))
    except FieldError as error:
        raise UserError(f"{flag(error.field)}: {error.message}") from None


def defaults(flags: DefaultsFlags) -> TrainConfig:
    """The settings where no other flag is given."""
    if flags.preset not in PRESETS:
        raise UserError(f"--preset: {flags.preset!r} is not one of {', '.join(PRESETS)}")
    model: dict[str, Any] = {}
    if frames := clip_frames(flags.data):  # the data set settles the number of frames
        model = {"num_frames": frames, "num_query_frames": frames // 2 + 1}
    elif flags.num_frames and flags.num_frames > 0:
        usual = IVCLConfig.preset(flags.preset).num_query_frames
        model = {"num_query_frames": min(usual, flags.num_frames)}
    config = TrainConfig(preset=flags.preset, model=IVCLConfig.preset(flags.preset, **model))
    return config.replace(**QUICK) if flags.quick else config


def resumed(config: TrainConfig, folder: Path) -> TrainConfig:
    """The settings to continue the run in ``folder`` with: its own, as flags changed them.

    Raises :class:`UserError` if flags would make it another run.
    """
    accepted = FREE - {"resume", "overwrite", "name", "out"}
    before, now = flat(load_settings(folder)), flat(config)
    fixed = now.keys() - accepted - {"resume"}
    if different := sorted(name for name in fixed if now[name] != before[name]):
        raise UserError(
            f"{', '.join(map(flag, different))}: a run keeps its settings; accepted with --resume: "
            + ", ".join(map(flag, sorted(accepted)))
        )
    return config.replace(resume=None)


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")
