"""Checkpoints: written whole or not at all, checked when read, never executing code.

A training checkpoint is a folder ``step-<number>/`` with ``model.safetensors``,
``optimizer.safetensors``, ``state.json`` (step and free-form state) and ``SHA256SUMS`` of these
three, which ``sha256sum -c`` reads too.
A finished model is a folder with ``model.safetensors``, ``SHA256SUMS``, ``config.json`` and a model
card (``save_pretrained``).

Several ranks write the very same files: rank 0 gathers sharded tensors one by one and writes them
whole. So a checkpoint of any number of ranks, replicated or sharded, goes on with any other;
docs/distributed.md has the price of it, and why it is not torch.distributed.checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.dtensor import full_tensor, shard_if_needed
from ivcl_fast.errors import UserError
from ivcl_fast.files import write_json, write_text

log = logging.getLogger(__name__)

KEEP = 2
"""Training checkpoints kept: the newest, and one to fall back to if that one is damaged."""

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
FILES = (MODEL, OPTIMIZER, STATE)
CHECKSUMS = "SHA256SUMS"
PRETRAINED = "pretrain"
"""The folder of a run that holds its pretrained model."""


@dataclass
class Checkpoint:
    """A training checkpoint in memory."""

    step: int
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    check(path, FILES)
    record = json.loads((path / STATE).read_text())
    return Checkpoint(
        record["step"], record["state"], load_file(path / MODEL), load_file(path / OPTIMIZER)
    )


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Record the files as they are in :data:`CHECKSUMS`."""
    write_text(folder / CHECKSUMS, "".join(checksum_line(folder / name) for name in names))


def checksum_line(path: Path) -> str:
    """As ``sha256sum`` writes it."""
    return f"{sha256(path)}  {path.name}\n"


def check(folder: Path, names: Sequence[str]) -> None:
    """Raises ``ValueError`` if a file differs from its checksum, ``OSError`` if one is missing."""
    recorded = (folder / CHECKSUMS).read_bytes().splitlines(keepends=True)
    differs = [name for name in names if checksum_line(folder / name).encode() not in recorded]
    if differs:
        raise ValueError(f"{', '.join(differs)} does not match its checksum")


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


# --- Finished models -----------------------------------------------------------------------------


def weights_file(source: str | os.PathLike) -> Path:
    """The safetensors file that ``source`` stands for: a folder, a run's folder, or that file.

    A run's folder stands for its pretrained model. Raises ``UserError`` if there is none.
    """
    path = Path(source)
    places = [path / MODEL, path / PRETRAINED / MODEL] if path.is_dir() else [path]
    for file in places:
        if file.is_file():
            return file
    if inside := models_in(path):
        raise UserError(
            f"checkpoint {path}: no {MODEL} there, and no {PRETRAINED} among its models; "
            f"give the folder of one: {inside}"
        )
    raise UserError(
        f"checkpoint {path}: no {MODEL} there; give a folder written by save_pretrained, "
        "or a .safetensors file"
    )


def models_in(folder: Path) -> str:
    """The models' folders right inside a folder, as a run has them, in words."""
    return ", ".join(sorted(str(file.parent) for file in folder.glob(f"*/{MODEL}")))


def is_local(place: str | os.PathLike) -> bool:
    """Whether a model's place is a folder, not ``OWNER/NAME`` on the Hugging Face hub.

    Raises ``UserError`` for a path that is no model's folder.
    """
    path = Path(place)
    if path.is_dir():
        if not (path / MODEL).is_file() and (inside := models_in(path)):
            raise UserError(f"{place}: holds no model itself; give the folder of one: {inside}")
        return True
    if path.is_file():
        raise UserError(f"{place}: is a file; give the folder that it lies in")
    if isinstance(place, str):
        with suppress(HFValidationError):
            validate_repo_id(place)
            return False
    raise UserError(
        f"{place}: no such folder; give one written by save_pretrained, or OWNER/NAME of a model "
        "on the Hugging Face hub"
    )


@contextmanager
def from_hub(place: str | os.PathLike) -> Iterator[None]:
    """While something of the hub is fetched: a failure becomes a ``UserError``."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{place}: neither a folder here nor to be had from the Hugging Face hub: {reason}"
        ) from None


def read_weights(source: str | os.PathLike | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict from a folder or file in safetensors format, or passed through.

    Raises ``UserError`` naming the path if there are no readable weights, and if :data:`CHECKSUMS`
    lies beside them and does not fit.
    """
    if isinstance(source, Mapping):
        return dict(source)
    file = weights_file(source)
    try:
        if file.name == MODEL and (file.parent / CHECKSUMS).is_file():
            check(file.parent, [MODEL])
    except ValueError:
        raise UserError(
            f"checkpoint {file}: damaged, its checksum in {CHECKSUMS} is another; if you put other "
            f"weights there, delete {CHECKSUMS}"
        ) from None
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"checkpoint {file}: not a readable safetensors file ({error})") from None


def misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Why ``weights`` are not those of such a model, or None if they are."""
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        ours, theirs = (list(d[key].shape) if key in d else "none" for d in (own, weights))
        if ours != theirs:
            return f"{key} is {theirs} there, but {ours} in a model of this config"
    return None
