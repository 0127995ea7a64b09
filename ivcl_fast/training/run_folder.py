"""A run's folder, which one run at a time has to itself."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import write_json
from ivcl_fast.training.settings import CONFIG, TrainConfig, as_json


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
    with locked(config.folder):
        if config.overwrite and not distributed.restarted():
            empty(config.folder)
        if not (config.folder / CONFIG).is_file():
            write_json(config.folder / CONFIG, as_json(config))
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A lock that the system takes back when this process ends, however it does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"{folder}: another process trains there; wait for it, or choose another --name"
        ) from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def empty(folder: Path) -> None:
    """Delete what is in it, not the folder, which may be locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
