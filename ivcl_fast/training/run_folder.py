"""The folder of a run: checks before training, exclusive use during it, and saved models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import fsync, locked, remove_files, remove_temporaries
from ivcl_fast.manifest import MANIFEST, write_recorded
from ivcl_fast.models import timm_weights
from ivcl_fast.models.backbone import has_public_name
from ivcl_fast.models.hub import MODEL_FILES, PretrainedModel
from ivcl_fast.models.weights import MODEL, TEMPORARY_WEIGHTS
from ivcl_fast.training import checkpoint
from ivcl_fast.training.settings import (
    CHANGEABLE,
    CONFIG,
    TrainConfig,
    as_json,
    flatten,
    load_settings,
)

CHECKPOINTS = "checkpoints"
"""Folder of a stage's training checkpoints, inside that of its model."""
PARTIAL = "model.partial"
"""Folder in which a model is written, inside the one in which it appears."""
PARTIAL_FILES = (*MODEL_FILES, TEMPORARY_WEIGHTS)
"""Patterns of all files there."""
OWN = (
    MANIFEST, "answers.json", "metrics.jsonl", "report.md", "clips.json", "scores.json",
    "curves.png", "reconstruction.png", "answers.png", "confusion.png", "slot_attention.png",
)  # fmt: skip
"""Files that only training writes into the folder of a run, besides its settings."""
FILES = (
    *OWN,
    "tensorboard/events.out.tfevents.*", "probes/probes.*", "visualize/index.html",
    "export/encoder.*", "export/classifier.*",
    *(f"visualize/**/{name}" for name in ("trajectory.png", "attention*.png", "slots.gif",
                                         "reconstruction.png")),
    *(f"{stage}/{part}{name}"
      for stage in ("pretrain", "finetune", "scratch", "last-frame", "scratch-last-frame")
      for part in ("", f"{PARTIAL}/")
      for name in PARTIAL_FILES),
    *(f"*/{CHECKPOINTS}/{name}" for name in checkpoint.PATTERNS),
)  # fmt: skip
"""Patterns of all files that commands write into the folder of a run, except for its settings and
the log of ``ivcl_fast.sweep``. Nothing else there is ever deleted."""


def check_folder(config: TrainConfig) -> TrainConfig:
    """Return the settings if the run's folder can be used with them.

    For ``--batch-size auto`` they have the number of the run that they continue, if there is one.
    Raises :class:`UserError` if it holds other files, or a run with other settings that has saved
    something, if it cannot be written to, and for ``--shard`` with a single process.
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
    continues = exists and (not config.output.overwrite or distributed.is_restart())
    if continues and config.optim.batch_size == "auto":
        begun = config.replace(batch_size=load_settings(config.folder).optim.batch_size)
        config = config if changed_settings(begun) else begun
    must_empty(config)
    return config


def must_empty(config: TrainConfig) -> bool:
    """Whether the folder holds a run that the run with these settings replaces.

    That is so with ``--overwrite``, and for other settings of a run that has saved nothing. Raises
    :class:`UserError` for other settings of a run that has, for a folder whose files are not those
    of a run, and if files to delete are links.
    """
    folder = config.folder
    if not os.path.lexists(folder / CONFIG):
        if strangers := [name for name in FILES if os.path.lexists(folder / name)]:
            raise UserError(
                f"{folder}: holds {strangers[0]}, but no run ({CONFIG} is missing); choose another "
                "--name"
            )
        return False
    changed = changed_settings(config)
    if config.output.overwrite:
        if starts_there(config):
            raise UserError(
                f"--overwrite: would delete the weights of --init {config.stages.init}; accepted: "
                "another --name"
            )
    else:
        if not changed:
            return False
        if has_progress(folder):
            or_overwrite = "" if starts_there(config) else ", or --overwrite it"
            raise UserError(
                f"{folder} holds a run with other settings ({', '.join(changed)}); "
                f"choose another --name{or_overwrite}"
            )
    out = config.output.out
    links = [folder, *folder.parents[: len(folder.relative_to(out).parts) - 1]]
    for pattern in map(PurePath, FILES):
        links += [folder / path for path in (pattern, *pattern.parents)]
    if link := next((path for path in links if path.is_symlink()), None):
        raise UserError(
            f"--overwrite: {link} is a link; accepted: a run whose folder and files are not links"
        )
    return True


def starts_there(config: TrainConfig) -> bool:
    """Whether the run starts from weights in its own folder."""
    init = config.stages.init
    if init == "random" or has_public_name(init):
        return False
    place = Path(init.removeprefix(timm_weights.PREFIX))
    return place.resolve().is_relative_to(config.folder.resolve())


def changed_settings(config: TrainConfig) -> list[str]:
    """Names of the settings that differ from those of the run in the folder; [] without a run."""
    if not (config.folder / CONFIG).is_file():
        return []
    before, now = flatten(load_settings(config.folder)), flatten(config)
    return sorted(name for name in now.keys() - CHANGEABLE if before[name] != now[name])


def has_progress(folder: Path) -> bool:
    """Whether the run in ``folder`` has saved a checkpoint, a finished model or its report.

    The report stays where models, which are large, were deleted later.
    """
    saved = ("*/checkpoints/*", "*/*.safetensors", "report.md")
    return any(any(folder.glob(pattern)) for pattern in saved)


@contextmanager
def opened_folder(config: TrainConfig) -> Iterator[None]:
    """Create the run's folder, write its settings and lock it for the duration of the block.

    If another process trains there with the same settings, waits for it. With ``--overwrite`` an
    earlier run is deleted first, but nothing that has been trained with the same settings where
    torchrun restarts the ranks; files that no run writes are kept. All of this happens on rank 0.
    Raises :class:`UserError` as :func:`check_folder` does, and for ``--overwrite`` while another
    process trains in the folder.
    """
    if not distributed.is_main():
        yield
        return
    config.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not stack.enter_context(locked(config.folder, wait=False)):
            if config.output.overwrite:
                raise UserError(
                    f"{config.folder}: another process trains there; wait for it, or choose "
                    "another --name"
                )
            must_empty(config)  # other settings are refused now rather than after hours
            stack.enter_context(locked(config.folder, busy="trained"))
        # Only what is seen under the lock counts.
        goes_on = distributed.is_restart() and not changed_settings(config)
        if must_empty(config) and not goes_on:
            # The settings go last: without them, what is left would be taken for other files.
            remove_files(config.folder, FILES)
            write_recorded(config.folder / CONFIG, as_json(config))
        if not (config.folder / CONFIG).is_file():
            write_recorded(config.folder / CONFIG, as_json(config))
        remove_temporaries(config.folder, (CONFIG, *OWN))
        yield


def save_model(model: PretrainedModel, folder: Path, training: dict[str, Any]) -> None:
    """Save a stage's finished model in ``folder``, where the weights appear last and complete.

    ``training``: what the model card says about the training. Raises :class:`UserError` if the
    files cannot be written, for example on a full disk.
    """
    partial = folder / PARTIAL
    remove_files(partial, PARTIAL_FILES)
    try:
        model.save_pretrained(partial, training=training)
        for name in sorted(MODEL_FILES, key=lambda name: name == MODEL):
            fsync(partial / name)
            os.replace(partial / name, folder / name)
        fsync(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the model cannot be written: {error}; make room, and the same command "
            "continues from the last checkpoint"
        ) from None
    finally:
        remove_files(partial, PARTIAL_FILES)
