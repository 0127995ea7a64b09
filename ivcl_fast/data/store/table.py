"""Memory-mapped tables of NumPy columns, without a Python object per row.

A table is a safetensors file, which other tools can read too; its metadata are JSON in the header.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

Columns = Mapping[str, np.ndarray]
Value = TypeVar("Value", covariant=True)


def table_bytes(columns: Columns, about: Mapping[str, Any]) -> bytes:
    """Return the content of the file of a table."""
    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    return save(arrays, {"about": json.dumps(about)})


def read_table(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the columns of a table, and read its metadata.

    Raises ``OSError`` if the file cannot be read, and ``ValueError`` if it is not a table.
    """
    try:
        with safe_open(path, "pt") as file:  # only tensors are memory-mapped
            about, names = json.loads(file.metadata()["about"]), file.keys()
            return {name: file.get_tensor(name).numpy() for name in names}, about
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a table: {error!r}") from None


class Lazy(ABC, Sequence[Value]):
    """A sequence whose values are made on access."""

    @abstractmethod
    def get(self, at: int) -> Value:
        """Return a value, at an index from 0."""

    @overload
    def __getitem__(self, at: int) -> Value: ...
    @overload
    def __getitem__(self, at: slice) -> list[Value]: ...
    def __getitem__(self, at: int | slice) -> Value | list[Value]:
        if isinstance(at, slice):
            return [self.get(i) for i in range(*at.indices(len(self)))]
        return self.get(range(len(self))[at])


class Strings(Lazy[str]):
    """A sequence of strings, decoded on access."""

    def __init__(self, columns: Columns, name: str) -> None:
        """``name``: as given to :func:`string_columns`."""
        self._text, self._ends = columns[name], columns[f"{name}_end"]

    def __len__(self) -> int:
        return len(self._ends)

    def get(self, at: int) -> str:
        start = int(self._ends[at - 1]) if at else 0
        return self._text[start : int(self._ends[at])].tobytes().decode(errors="surrogateescape")


def string_columns(name: str, strings: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the columns of :class:`Strings`: the UTF-8 bytes, and where each string ends."""
    encoded = [one.encode(errors="surrogateescape") for one in strings]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_end": ends}


class Index:
    """The media of a store or of a stream, by name: how many frames they have, and where.

    Example::

        >>> index = Index.read(Path("all_actions/store-64-p8-pyav/index.safetensors"))
        >>> index.frames[index.find(["CATER_new_000123"])]
        array([301], dtype=int32)
    """

    def __init__(
        self, columns: Columns, about: Mapping[str, Any], folder: Path | None = None
    ) -> None:
        self.columns, self.about, self.folder = columns, about, folder
        self.names, self.facts = Strings(columns, "name"), Strings(columns, "facts")
        self.frames = columns["frames"]
        """Number of frames of each of the media, int32 ``[n]``."""
        self.bad_files: dict[str, str] = dict(about["bad_files"])
        """Media that cannot be used, with the reason."""

    @classmethod
    def make(
        cls,
        names: Iterable[str],
        columns: Columns,
        about: Mapping[str, Any],
        facts: Sequence[str] = (),
    ) -> Index:
        """Make an index from names of media, further columns, and a string of facts for each."""
        names = list(names)
        hashes = hashes_of(names)
        order = np.argsort(hashes)
        strings = string_columns("name", names) | string_columns("facts", facts)
        return cls({**strings, "hash": hashes[order], "row": order, **columns}, about)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open an index; raises ``OSError`` or ``ValueError`` if that fails."""
        try:
            return cls(*read_table(path), path.parent)
        except KeyError as error:
            raise ValueError(f"not an index: {error!r}") from None

    def to_bytes(self) -> bytes:
        """Return the content of the index's file."""
        return table_bytes(self.columns, self.about)

    def __len__(self) -> int:
        return len(self.names)

    def find(self, names: Iterable[str]) -> np.ndarray:
        """Return the rows of media, int64 ``[n]``, and -1 for those that are not in the index."""
        return self.find_hashes(hashes_of(names))

    def find_hashes(self, hashes: np.ndarray) -> np.ndarray:
        """Return the rows of media like :meth:`find`, from :func:`hashes_of` their names."""
        known = self.columns["hash"]
        if not len(known):
            return np.full(len(hashes), -1)
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return np.where(known[places] == hashes, self.columns["row"][places], -1)


def hashes_of(names: Iterable[str]) -> np.ndarray:
    """Return the hash of each name for look-ups in an index: int64 ``[n]``."""
    digests = (
        hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
        for name in names
    )
    return np.frombuffer(b"".join(digests), np.int64)
