"""Tables in NumPy columns, mapped into memory: no Python object per row.

A table is a safetensors file, so that other tools read it too; facts about the whole table are JSON
in its header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from safetensors.numpy import save

from ivcl_fast.files import atomic_write

DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "U64": np.uint64, "F64": np.float64}

Columns = Mapping[str, np.ndarray]


def write_table(path: Path, columns: Columns, about: Mapping[str, Any]) -> None:
    """Write a table atomically."""
    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    content = save(arrays, {"about": json.dumps(about)})
    with atomic_write(path) as file:
        file.write(content)


def read_table(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the columns of a table, and read its facts.

    Raises ``OSError`` if the file cannot be read, and ``ValueError`` if it is not a table.
    """
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    try:
        header = json.loads(content[8:start].tobytes())
        about = json.loads(header.pop("__metadata__")["about"])
        columns = {}
        for name, column in header.items():
            first, end = column["data_offsets"]
            values = content[start + first : start + end].view(DTYPES[column["dtype"]])
            columns[name] = values.reshape(column["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a table: {error!r}") from None
    return columns, about


class Strings(Sequence[str]):
    """Strings that are decoded when they are read."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        """``text``: all of them as UTF-8, uint8; ``ends``: where each of them ends in it."""
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        start = int(self._ends[at - 1]) if at else 0
        return self._text[start : int(self._ends[at])].tobytes().decode(errors="surrogateescape")


def string_columns(name: str, strings: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the columns of :class:`Strings`, which :func:`strings_of` reads."""
    encoded = [one.encode(errors="surrogateescape") for one in strings]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_end": ends}


def strings_of(columns: Columns, name: str) -> Strings:
    """Return the strings that :func:`string_columns` wrote."""
    return Strings(columns[name], columns[f"{name}_end"])


class Index:
    """The media of a store or a stream, by name: how many frames they have, and where.

    Example::

        >>> index = Index.read(Path("all_actions/store-64-p8-pyav/index.safetensors"))
        >>> index.frames[index.find(["CATER_new_000123"])]
        array([301], dtype=int32)
    """

    def __init__(self, columns: Columns, about: Mapping[str, Any]) -> None:
        self.columns, self.about = columns, about
        self.names = strings_of(columns, "name")
        self.frames = columns["frames"]
        """Number of frames of each of the media, int32 ``[n]``."""
        self.bad_files: dict[str, str] = {
            name: reason for name, (reason, *_) in about["bad_files"].items()
        }
        """Media that cannot be used, with the reason."""

    @classmethod
    def make(cls, names: Iterable[str], columns: Columns, about: Mapping[str, Any]) -> Index:
        """Make an index from the names of media and its other columns."""
        names = list(names)
        hashes = hashes_of(names)
        order = np.argsort(hashes)
        of_names = string_columns("name", names) | {"hash": hashes[order], "row": order}
        return cls({**of_names, **columns}, about)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Open an index; raises ``OSError`` or ``ValueError`` if that is not possible."""
        try:
            return cls(*read_table(path))
        except KeyError as error:
            raise ValueError(f"not an index: {error!r}") from None

    def write(self, path: Path) -> None:
        """Write the index atomically."""
        write_table(path, self.columns, self.about)

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
    """Return a hash of each name, uint64 ``[n]``, by which an index finds it."""
    digests = (
        hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
        for name in names
    )
    return np.frombuffer(b"".join(digests), np.uint64)
