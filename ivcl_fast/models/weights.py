"""Find, verify and read the weights of finished models on disk.

A finished model is a folder written by ``save_pretrained``, with ``model.safetensors``,
``SHA256SUMS``, ``config.json`` and a model card. A run's folder has one such folder per stage.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ivcl_fast.errors import UserError
from ivcl_fast.files import fsync, read_bytes, read_json, sha256, write_text

MODEL, CONFIG, CHECKSUMS = "model.safetensors", "config.json", "SHA256SUMS"
STAGES = {
    "IVCL": "pretrain",
    "SlotAutoencoder": "pretrain",
    "Supervised": "pretrain",
    "IVCLClassifier": "finetune",
}
"""Folder in a run's folder with the model of each class."""
CLASS_OF_KEY = {
    "head.weight": "IVCLClassifier",
    "decoder.mask_token": "IVCL",
    "decoder.background": "SlotAutoencoder",
    "label_head.weight": "Supervised",
    "detect_head.weight": "Supervised",
    "slot_head.weight": "Supervised",
}
"""State-dict keys that only one class has, and that class."""
PACKAGED = Path(__file__).resolve().parent.parent / "pretrained"
"""Folder of the packaged models."""
PREFIX = "ivcl_fast/"
"""Prefix of their names."""


# --- Checksums ------------------------------------------------------------------------------------


def checksum_line(path: Path) -> str:
    """Return a file's checksum in the format of ``sha256sum``."""
    return f"{sha256(path)}  {path.name}\n"


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Flush these files in a folder to the disk, then write their :data:`CHECKSUMS`."""
    for name in names:
        fsync(folder / name)
    write_text(folder / CHECKSUMS, "".join(checksum_line(folder / name) for name in names))


def check_checksums(folder: Path, names: Sequence[str]) -> None:
    """Raise ``ValueError`` if a file differs from its checksum, ``OSError`` if one is missing."""
    recorded = read_bytes(folder / CHECKSUMS).splitlines(keepends=True)
    differs = [name for name in names if checksum_line(folder / name).encode() not in recorded]
    if differs:
        raise ValueError(f"{', '.join(differs)} does not match its checksum")


def check_undamaged(file: Path) -> None:
    """Raise :class:`UserError` if a model's file differs from its checksum."""
    try:
        check_checksums(file.parent, [file.name])
    except ValueError:
        raise UserError(
            f"{file}: damaged, it does not match its checksum; if you changed it on purpose, "
            f"delete {CHECKSUMS}"
        ) from None


# --- Finding --------------------------------------------------------------------------------------


def model_folder(place: str | os.PathLike, stage: str) -> Path:
    """Return the folder of a model: ``place`` itself, or ``stage`` inside a run's folder.

    Raises :class:`UserError` if neither holds a model, naming the models that are there.
    """
    path = Path(place)
    for folder in (path, path / stage):
        if (folder / MODEL).is_file():
            return folder
    inside = sorted(file.parent for file in path.glob(f"*/{MODEL}"))
    if not inside:
        raise UserError(
            f"{place}: expected a folder written by save_pretrained, a run's folder, or a file of "
            f"weights, got no {MODEL}"
        )
    found = ", ".join(map(str, inside))
    raise UserError(f"{place}: expected {MODEL} there or in {stage}, got other models: {found}")


def weights_file(source: str | os.PathLike) -> Path:
    """Return the file of weights of ``source``: a file, a model, or a run's pretrained model.

    A name such as ``ivcl_fast/tiny-localize`` is a packaged model. Raises :class:`UserError` if the
    weights cannot be found.
    """
    if Path(source).is_file():
        return Path(source)
    return model_folder(packaged_model(source) or source, STAGES["IVCL"]) / MODEL


def class_of(keys: Collection[str]) -> str | None:
    """Return the class name for these state-dict keys, or None if they are not of IV-CL."""
    return next((name for key, name in CLASS_OF_KEY.items() if key in keys), None)


def packaged_model(place: str | os.PathLike) -> Path | None:
    """Return the folder of a packaged model, such as ``ivcl_fast/tiny-localize``.

    Returns None for other places, including a local folder of that name.
    """
    if not isinstance(place, str) or not place.startswith(PREFIX) or Path(place).is_dir():
        return None
    names = sorted(folder.name for folder in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
    if (name := place.removeprefix(PREFIX)) in names:
        return PACKAGED / name
    accepted = ", ".join(PREFIX + name for name in names)
    raise UserError(f"{place}: expected one of the packaged models {accepted}, got an unknown name")


# --- Reading --------------------------------------------------------------------------------------


def read_weights(source: str | os.PathLike | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the state dict of a source (see :func:`weights_file`); a state dict passes through.

    Raises :class:`UserError` for a file that is not in the safetensors format, or with a wrong
    checksum in :data:`CHECKSUMS`.
    """
    if isinstance(source, Mapping):
        return dict(source)
    file = weights_file(source)
    if file.name == MODEL and (file.parent / CHECKSUMS).is_file():
        check_undamaged(file)
    try:
        return load_tensors(file)
    except SafetensorError as error:
        raise UserError(
            f"{file}: not a readable safetensors file ({error}); load one of torch.save by "
            "yourself, and pass its state dict to load_pretrained"
        ) from None


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; raises ``SafetensorError`` or a named ``OSError``."""
    with file.open("rb"):
        return load_file(file)


def read_config(file: Path) -> dict[str, Any]:
    """Read a model's ``config.json``; raise :class:`UserError` if it is not a model's."""
    if not file.is_file():
        raise UserError(
            f"{file.parent}: expected a folder written by save_pretrained, with {CONFIG}"
        )
    if file.with_name(CHECKSUMS).is_file():
        check_undamaged(file)
    config = read_json(file, "the config of a model")
    if not isinstance(config, dict) or not isinstance(config.get("cfg"), dict):
        raise UserError(f"{file}: expected the config of a model, got one without cfg")
    return config


def misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Describe the first difference in keys, shapes or kinds of numbers, or return None."""
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        ours, theirs = (list(d[key].shape) if key in d else "none" for d in (own, weights))
        if ours != theirs:
            return f"{key} is {theirs} there, but {ours} in a model of this config"
        if not weights[key].is_floating_point():
            return f"{key} is {weights[key].dtype} there, but a model has floating-point weights"
    return None
