"""A run's folder, which one run at a time has to itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, write_json
from ivcl_fast.training.settings import CONFIG, FREE, TrainConfig, as_json, flat, load_settings


def resolve(config: TrainConfig) -> TrainConfig:
    """The settings to run with: these, if neither another run nor a closed folder is in the way.

    A run of other settings that has kept nothing to continue from is not in the way. Raises
    :class:`UserError` if something is.
    """
    place = next(path for path in (config.folder, *config.folder.parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise UserError(f"{config.folder}: {place} cannot be written to; choose another --out")
    if config.output.overwrite or not (different := differing(config)):
        return config
    if not has_begun(config.folder):
        return config.replace(overwrite=True)
    raise UserError(
        f"{config.folder} holds a run with other settings ({', '.join(different)}); "
        "choose another --name, or --overwrite it"
    )


def differing(config: TrainConfig) -> list[str]:
    """Names of the settings that the run in this one's folder has otherwise; none without one."""
    if not (config.folder / CONFIG).is_file():
        return []
    before, now = flat(load_settings(config.folder)), flat(config)
    return sorted(name for name in now.keys() - FREE if before[name] != now[name])


def has_begun(folder: Path) -> bool:
    """Whether a stage of the run there has kept a checkpoint or its model."""
    return any(folder.glob("*/checkpoints/*")) or any(folder.glob("*/*.safetensors"))


@contextmanager
def claim(config: TrainConfig) -> Iterator[None]:
    """Make the run's folder, keep the settings there, and keep other processes out of it.

    ``--overwrite`` empties it first. Rank 0 does all that, and deletes nothing when torchrun starts
    it anew. Raises :class:`UserError` while another process trains there.
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
        if config.output.overwrite and not distributed.restarted():
            empty(config.folder)
        if not (config.folder / CONFIG).is_file():
            write_json(config.folder / CONFIG, as_json(config))
        yield


def empty(folder: Path) -> None:
    """Delete what is in it, not the folder, which may be locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
