"""Training checkpoints: written atomically, verified when read, and free of executable code.

A training checkpoint is a folder ``step-<number>/`` with ``model.safetensors``,
``optimizer.safetensors``, ``state.json`` (step and free-form state) and ``SHA256SUMS`` of these
three, which ``sha256sum -c`` can read. Finished models are in :mod:`~ivcl_fast.models.weights`.

Rank 0 gathers sharded tensors one at a time and writes them in full, so a run can continue with any
number of ranks, replicated or sharded.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.parallel import full_tensor, shard_if_needed
from ivcl_fast.files import atomic_folder, read_bytes, write_json
from ivcl_fast.models.weights import MODEL, check_checksums, load_tensors, write_checksums

log = logging.getLogger(__name__)

KEEP = 2
"""Number of checkpoints to keep: the newest, and one in case the newest is damaged."""

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
FILES = (MODEL, OPTIMIZER, STATE)
STEP = re.compile(r"step-\d{8,}")
"""Pattern of a checkpoint folder's name."""


@dataclass
class Checkpoint:
    """A training checkpoint in memory."""

    step: int
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def snapshot(
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
) -> Checkpoint:
    """Gather a checkpoint of ``step`` in rank 0's memory.

    All ranks must call this; the others get a checkpoint without tensors.
    """
    # First: after a forward pass without a backward pass (a validation), FSDP2 keeps parameters
    # outside of blocks gathered, and they are not those of the optimisers, until state_dict().
    weights = gather_to_rank0(model.state_dict())
    slots = {  # by parameter name, independent of the parameter order
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
    known = sum(len(slot) for optimizer in optimizers for slot in optimizer.state.values())
    assert len(slots) == known, f"{len(slots)} of {known} optimiser states belong to the model"
    return Checkpoint(step, state, weights, gather_to_rank0(slots))


def restore_optimizers(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Load the optimisers' state from a :func:`snapshot`."""
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        parameter = parameters[name]
        # Fused optimisers keep their step counters on the parameters' device.
        value = shard_if_needed(value.to(parameter.device), parameter)
        owner[parameter].state[parameter][slot] = value


def store(folder: Path, saved: Checkpoint) -> Path:
    """Write a checkpoint under ``folder`` and keep the newest :data:`KEEP`; on rank 0 only.

    Checkpoints of later steps are deleted too: they are damaged, otherwise the run would have
    continued from them. Raises ``OSError`` if the files cannot be written.
    """
    final = folder / f"step-{saved.step:08d}"
    try:
        with atomic_folder(final) as partial:
            save_file(saved.model, partial / MODEL)
            save_file(saved.optimizer, partial / OPTIMIZER)
            write_json(partial / STATE, {"step": saved.step, "state": saved.state})
            write_checksums(partial, FILES)
    except SafetensorError as error:  # such as on a full disk
        raise OSError(str(error)) from None
    good = [path for path in list_steps(folder) if path.name <= final.name][-KEEP:]
    for other in set(folder.glob("step-*")) - set(good):
        shutil.rmtree(other)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """Read the newest undamaged checkpoint under ``folder``, if any; damaged ones are logged.

    All ranks must call this; they get the checkpoint that rank 0 chooses.
    """
    found = newest_undamaged(folder) if distributed.is_main() else None
    step = distributed.broadcast_from_rank0(found.step if found else -1)
    return found if found or step < 0 else read(folder / f"step-{step:08d}")


def newest_undamaged(folder: Path) -> Checkpoint | None:
    """Like :func:`latest`, for a single rank.

    Operating-system errors other than a missing file are raised, so that training does not restart
    over a checkpoint that may be intact.
    """
    for path in reversed(list_steps(folder)):
        try:
            return read(path)
        except (FileNotFoundError, ValueError, KeyError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged and is skipped: %s", path, error)
    return None


def read(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises ``ValueError`` if a file does not match its checksum, ``OSError`` if one is missing.
    """
    check_checksums(path, FILES)
    record = json.loads(read_bytes(path / STATE))
    return Checkpoint(
        record["step"], record["state"], *(load_tensors(path / name) for name in (MODEL, OPTIMIZER))
    )


def list_steps(folder: Path) -> list[Path]:
    """List the checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if STEP.fullmatch(path.name))


def gather_to_rank0(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU of rank 0, shards in full; the other ranks get an empty dict.

    All ranks must call this.
    """
    gathered = {}
    for name, tensor in tensors.items():
        whole = full_tensor(tensor.detach())
        if distributed.is_main():
            gathered[name] = whole.cpu().contiguous()
    return gathered
