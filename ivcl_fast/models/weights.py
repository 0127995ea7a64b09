"""Weights of finished models: finding, checking and reading them.

A finished model is a folder with ``model.safetensors``, ``SHA256SUMS``, ``config.json`` and a model
card (``save_pretrained``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ivcl_fast.errors import UserError
from ivcl_fast.files import write_text

MODEL = "model.safetensors"
CHECKSUMS = "SHA256SUMS"
PRETRAINED = "pretrain"
"""The folder of a run that holds its pretrained model."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
