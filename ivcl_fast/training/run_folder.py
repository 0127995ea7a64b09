"""The folder of a run: checks before training, exclusive use during it, and saved models."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import fsync, locked, write_json
from ivcl_fast.models.hub import PretrainedModel
from ivcl_fast.models.weights import MODEL
from ivcl_fast.training.settings import (
    CHANGEABLE,
    CONFIG,
    TrainConfig,
    as_json,
    flatten,
    load_settings,
)


def check_folder(config: TrainConfig) -> TrainConfig:
    """Check that the run's folder can be used, and return the settings to train with.

    If the folder holds a run with other settings that has saved nothing yet, they ask to overwrite
    it. Raises :class:`UserError` if that run has saved something, if the folder cannot be written
    to, and for ``--shard`` with a single process.
    """
    place = next(path for path in (config.folder, *config.folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"--out: {config.folder} cannot be written ({place}: {error.strerror}); accepted: "
            "a folder with write access"
        ) from None
    exists = (config.folder / CONFIG).is_file()
    if config.speed.shard and distributed.world_size() == 1:
        # A sharded run may be continued by a single process.
        if not (exists and load_settings(config.folder).speed.shard):
            raise UserError(
                "--shard: there is a single process; accepted: several ranks, started by torchrun"
            )
        distributed.print_rank0("--shard: nothing to shard, there is a single process")
    if config.output.overwrite or not exists or not (changed := changed_settings(config)):
        return config
    if not has_progress(config.folder):
        return config.replace(overwrite=True)
    raise UserError(
        f"{config.folder} holds a run with other settings ({', '.join(changed)}); "
        "choose another --name, or --overwrite it"
    )


def changed_settings(config: TrainConfig) -> list[str]:
    """Names of the settings that differ from those of the run in the folder; [] without a run."""
    if not (config.folder / CONFIG).is_file():
        return []
    before, now = flatten(load_settings(config.folder)), flatten(config)
    return sorted(name for name in now.keys() - CHANGEABLE if before[name] != now[name])


def has_progress(folder: Path) -> bool:
    """Whether the run in ``folder`` has saved a checkpoint or a finished model."""
    return any(folder.glob("*/checkpoints/*")) or any(folder.glob("*/*.safetensors"))


@contextmanager
def opened_folder(config: TrainConfig) -> Iterator[None]:
    """Create the run's folder, write its settings and lock it for the duration of the block.

    With ``--overwrite`` the folder is emptied first, except after a restart by torchrun. All of
    this happens on rank 0. Raises :class:`UserError` while another process trains in the folder.
    """
    if not distributed.is_main():
        yield
        return
    config.folder.mkdir(parents=True, exist_ok=True)
    with locked(config.folder, wait=False) as held:
        if not held:
            raise UserError(
                f"{config.folder}: another process trains there; wait for it, or choose another "
                "--name"
            )
        if config.output.overwrite and not distributed.is_restart():
            empty_folder(config.folder)
        if not (config.folder / CONFIG).is_file():
            write_json(config.folder / CONFIG, as_json(config))
        yield


def empty_folder(folder: Path) -> None:
    """Delete the content of a folder, but not the folder itself, which is locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def save_model(model: PretrainedModel, folder: Path, training: dict[str, Any]) -> None:
    """Save a stage's finished model in ``folder``, where the weights appear last and complete.

    ``training``: what the model card says about the training. Raises :class:`UserError` if the
    files cannot be written, for example on a full disk.
    """
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, training=training)
        for file in sorted(partial.iterdir(), key=lambda f: f.name == MODEL):
            fsync(file)
            os.replace(file, folder / file.name)
        fsync(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the model cannot be written: {error}; make room, and the same command "
            "continues from the last checkpoint"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
