"""Memory-mapped tables of NumPy columns, without a Python object per row.

A table is a safetensors file, which other tools can read too; its metadata are JSON in the header.
Columns of strings have the dtype ``S``: bytes in UTF-8, padded with zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ivcl_fast.errors import UserError

VERSION = 6
"""Version of the files of stores and of indexes."""
INDEX = "index.safetensors"
Columns = Mapping[str, np.ndarray]


def table_bytes(columns: Columns, about: Mapping[str, Any]) -> bytes:
    """Return the content of the file of a table."""
    arrays = {
        name: column.view(np.uint8).reshape(len(column), column.itemsize)
        if column.dtype.kind == "S" else np.ascontiguousarray(column)
        for name, column in columns.items()
    }  # fmt: skip
    return save(arrays, {"about": json.dumps(about)})


def read_table(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the columns of a table, and read its metadata.

    Raises ``OSError`` if the file cannot be read, and ``ValueError`` if it is not a table.
    """
    try:
        with safe_open(path, "pt") as file:  # only tensors are memory-mapped
            about, names = json.loads(file.metadata()["about"]), file.keys()
            arrays = {name: file.get_tensor(name).numpy() for name in names}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a table: {error!r}") from None
    columns = {
        name: array.view(f"S{array.shape[1]}")[:, 0] if array.ndim == 2 else array
        for name, array in arrays.items()
    }
    return columns, about


def encoded(strings: Iterable[str]) -> np.ndarray:
    """Return a column of strings: dtype ``S``, ``[n]``."""
    return np.array([one.encode(errors="surrogateescape") for one in strings], "S")


def decoded(string: bytes) -> str:
    """Return a string of a column."""
    return string.decode(errors="surrogateescape")


class Index:
    """The media of a store or of a stream, sorted by name: their frames, and where they are.

    Example::

        >>> index = read_index(Path("all_actions/store-64-p8-pyav"))
        >>> index.frames[index.find(encoded(["CATER_new_000123"]))]
        array([301])
    """

    def __init__(self, columns: Columns, about: Mapping[str, Any]) -> None:
        self.columns, self.about = columns, about
        self.names: np.ndarray = columns["name"]
        """Names of the media, dtype ``S``, ``[n]``, in ascending order."""
        self.frames: np.ndarray = columns["frames"]
        """Number of frames of each of the media, int64 ``[n]``."""
        self.fps: np.ndarray = columns.get("fps", np.zeros(len(self.names)))
        """Frame rate of each of the media, float64 ``[n]``; 0 if it is not known."""
        self.bad_files: dict[str, str] = about["bad_files"]
        """Media that cannot be used, with the reason."""

    def __len__(self) -> int:
        return len(self.names)

    def find(self, names: np.ndarray) -> np.ndarray:
        """Return the rows of media, int64 ``[n]``, and -1 for those that are not in the index.

        ``names``: in the form of :func:`encoded`.
        """
        if not len(self):
            return np.full(len(names), -1)
        places = np.minimum(np.searchsorted(self.names, names), len(self) - 1)
        return np.where(self.names[places] == names, places, -1)


def read_index(folder: Path) -> Index:
    """Read an index; raises :class:`UserError` if it is missing, damaged or of another version."""
    file = Path(folder) / INDEX
    try:
        columns, about = read_table(file)
        version = about["settings"]["version"]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: is not a frame store, or its build is not finished") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: damaged: {error}; delete this file, and the command that built the store "
            "writes it again"
        ) from None
    if version != VERSION:
        reason = "was written by another version of ivcl_fast; move it away and prepare it again"
        raise UserError(f"{folder}: {reason}")
    return Index(columns, about)
