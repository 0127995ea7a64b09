"""Checkpoints: written whole or not at all, checked when read, never executing code.

A training checkpoint is a folder ``step-<number>/`` with ``model.safetensors``,
``optimizer.safetensors``, ``state.json`` (step and free-form state) and ``SHA256SUMS`` of these
three, which ``sha256sum -c`` reads too.
Finished models are another matter: :mod:`~ivcl_fast.models.weights`.

Several ranks write the very same files: rank 0 gathers sharded tensors one by one and writes them
whole. So a checkpoint of any number of ranks, replicated or sharded, goes on with any other;
docs/distributed.md has the price of it, and why it is not torch.distributed.checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.dtensor import full_tensor, shard_if_needed
from ivcl_fast.errors import UserError
from ivcl_fast.files import write_json
from ivcl_fast.models.weights import MODEL, check_checksums, write_checksums

log = logging.getLogger(__name__)

KEEP = 2
"""Training checkpoints kept: the newest, and one to fall back to if that one is damaged."""

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
FILES = (MODEL, OPTIMIZER, STATE)


@dataclass
class Checkpoint:
    """A training checkpoint in memory."""

    step: int
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
) -> Path:
    """Write checkpoint ``step`` under ``folder`` and delete all but the newest :data:`KEEP`.

    Later ones are deleted too: they were damaged when the run went on from an earlier one. All
    ranks have to call it; it returns when the files are whole. Raises ``OSError`` (on rank 0) where
    they cannot be written; then those before it are all still there.
    """
    weights, slots = whole_tensors(model.state_dict()), flatten_optimizers(model, optimizers)
    final = folder / f"step-{step:08d}"
    try:
        if distributed.is_main():
            write(final, weights, slots, {"step": step, "state": state})
            good = [path for path in list_steps(folder) if path.name <= final.name][-KEEP:]
            for other in set(folder.glob("step-*")) - set(good):
                shutil.rmtree(other, ignore_errors=True)
    finally:
        distributed.barrier()
    return final


def write(
    final: Path, weights: dict[str, Tensor], slots: dict[str, Tensor], record: dict[str, Any]
) -> None:
    """Write one checkpoint folder beside its place and move it there."""
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(weights, partial / MODEL)
        save_file(slots, partial / OPTIMIZER)
        write_json(partial / STATE, record)
        write_checksums(partial, FILES)
        for path in [*partial.iterdir(), partial]:
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync(final.parent)
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(str(error)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint under ``folder``; a damaged one is named in the log.

    All ranks have to call it, and get the one that rank 0 chose.
    """
    found = newest_undamaged(folder) if distributed.is_main() else None
    step = distributed.broadcast_from_rank0(found.step if found else -1)
    if found or step < 0:
        return found
    path = folder / f"step-{step:08d}"
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: rank 0 reads it, rank {distributed.rank()} cannot: {error}; a run's folder "
            "has to lie where all machines see it"
        ) from None


def newest_undamaged(folder: Path) -> Checkpoint | None:
    for path in reversed(list_steps(folder)):
        try:
            return read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged and passed over: %s", path, error)
    return None


def read(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises ``ValueError`` if a file does not match its checksum, ``OSError`` if one is missing.
    """
    check_checksums(path, FILES)
    record = json.loads((path / STATE).read_text())
    return Checkpoint(
        record["step"], record["state"], load_file(path / MODEL), load_file(path / OPTIMIZER)
    )


def list_steps(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".partial")


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, on rank 0 alone; all ranks have to call it.

    Sharded ones are gathered one at a time.
    """
    kept = {}
    for name, tensor in tensors.items():
        tensor = full_tensor(tensor.detach())
        if distributed.is_main():
            kept[name] = tensor.cpu().contiguous()
    return kept


def sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- Optimiser state by parameter name, so that it survives a change of parameter order ----------


def flatten_optimizers(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """``{"<parameter>/<slot>": tensor}`` for every slot of every parameter's state."""
    return whole_tensors(
        {
            f"{name}/{slot}": value
            for name, parameter in model.named_parameters()
            for optimizer in optimizers
            for slot, value in optimizer.state.get(parameter, {}).items()
        }
    )


def restore_optimizers(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Put the state of :func:`flatten_optimizers` back."""
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        parameter = parameters[name]
        # A fused optimiser keeps its step counters beside the parameters, others on the CPU.
        value = shard_if_needed(value.to(parameter.device), parameter)
        owner[parameter].state[parameter][slot] = value
