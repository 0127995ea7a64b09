"""The folder of a run: checks before training, exclusive use during it, and saved models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked
from ivcl_fast.models import timm_weights
from ivcl_fast.models.weights import CHECKSUMS, CONFIG, MODEL
from ivcl_fast.training.classes import ANSWERS
from ivcl_fast.training.settings import CHANGEABLE, TrainConfig, load_settings, write_settings

CHECKPOINTS = "checkpoints"
"""Folder of training checkpoints inside a stage's folder."""
FOLDERS = (
    "pretrain", "last-frame", "finetune", "tensorboard", "visualize", "probes", "export",
)  # fmt: skip
"""Folders that commands write into a run's folder."""
FILES = (
    ANSWERS, "metrics.jsonl", "report.md", "report.html", "clips.json", "scores.json",
)  # fmt: skip
"""Files that training writes into a run's folder, besides its settings."""


def check_folder(config: TrainConfig) -> TrainConfig:
    """Return the settings if they can be used with the run's folder.

    Raises :class:`UserError` if it holds other files or other progress, or is not writable.
    """
    place = next(path for path in (config.folder, *config.folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"--out: expected a folder with write access, got {place}")
    if config.speed.shard and distributed.world_size() == 1:
        distributed.print_rank0("--shard: no effect with a single process")
    must_empty(config)
    return config


def must_empty(config: TrainConfig) -> bool:
    """Return whether the folder holds a run to replace: with ``--overwrite``, or without progress.

    Raises :class:`UserError` for progress of a run with other settings, and for files of no run.
    """
    folder = config.folder
    if not (folder / CONFIG).exists():
        if others := [name for name in (*FILES, *FOLDERS) if (folder / name).exists()]:
            raise UserError(
                f"--name: expected a new folder or a run, got {folder}, which holds {others[0]} "
                f"but no {CONFIG}"
            )
        return False
    changed = changed_settings(config)
    if config.output.overwrite:
        init = Path(config.stages.init.removeprefix(timm_weights.PREFIX))
        if init.exists() and init.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--overwrite: expected --init outside the run, got {init}, which it would delete"
            )
        return True
    if changed and has_progress(folder):
        raise UserError(
            f"--name: expected another name, or --overwrite, got {folder}, a run with other "
            f"settings ({', '.join(changed)})"
        )
    return bool(changed)


def changed_settings(config: TrainConfig) -> list[str]:
    """Return the names of settings that differ from those of the run in the folder, if any."""
    if not (config.folder / CONFIG).is_file():
        return []
    before, now = load_settings(config.folder).flat(), config.flat()
    return sorted(name for name in now.keys() - CHANGEABLE if before[name] != now[name])


def has_progress(folder: Path) -> bool:
    """Return whether a run has saved a checkpoint, a finished model or its report."""
    saved = ("*/checkpoints/*", "*/*.safetensors", "report.md")
    return any(any(folder.glob(pattern)) for pattern in saved)


@contextmanager
def opened_folder(config: TrainConfig) -> Iterator[None]:
    """Create the run's folder, write its settings and lock it within the ``with`` block.

    With ``--overwrite`` an earlier run's files are deleted first, unless torchrun restarts the
    ranks. All of this happens on rank 0.
    """
    if not distributed.is_main():
        yield
        return
    config.folder.mkdir(parents=True, exist_ok=True)
    with locked(config.folder, wait=False) as held:
        if not held:
            raise UserError(
                f"--name: expected a run that no other process is training, got {config.folder}"
            )
        continues = distributed.is_restart() and not changed_settings(config)
        if must_empty(config) and not continues:
            for name in FOLDERS:
                shutil.rmtree(config.folder / name, ignore_errors=True)
            for name in FILES:
                (config.folder / name).unlink(missing_ok=True)
            write_settings(config)
        elif not (config.folder / CONFIG).is_file():
            write_settings(config)
        yield


def is_finished(folder: Path) -> bool:
    """Return whether a stage has saved its model; an incomplete one has no checksums yet."""
    has_checksums = (folder / CHECKSUMS).is_file()
    return (folder / MODEL).is_file() and (has_checksums or not (folder / CHECKPOINTS).exists())
