"""Checksums of the files of a synthetic data set.

``ivcl_manifest.json`` holds the length and the SHA-256 of each file by its path in the folder, and
its own SHA-256. Files that are not recorded are not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ivcl_fast.errors import UserError
from ivcl_fast.files import read_bytes, write_text

MANIFEST = "ivcl_manifest.json"


def signed(value: dict[str, Any]) -> str:
    """Return the text of a JSON file that holds ``value`` and its own checksum."""
    return _text({**value, "sha256": hashlib.sha256(_text(value).encode()).hexdigest()})


def check_signed(text: bytes) -> dict[str, Any]:
    """Return the value of :func:`signed`; raises ``ValueError`` if a byte of the text changed."""
    try:
        found = json.loads(text)
        value = {key: of_key for key, of_key in found.items() if key != "sha256"}
        intact = text == signed(value).encode()
    except (AttributeError, RecursionError, ValueError):
        intact = False
    if not intact:
        raise ValueError("it does not match its own checksum")
    return value


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


class Manifest:
    """The manifest of a folder, in memory.

    Example::

        >>> manifest = Manifest.read(Path("data/cater"))
        >>> manifest.check("lists/localize/val.txt", content)
    """

    def __init__(self, folder: Path, files: dict[str, list[Any]] | None = None) -> None:
        self.folder = folder
        self.files = files or {}
        """Length and SHA-256 by path."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder, an empty one if there is none.

        Raises :class:`UserError` if it is damaged.
        """
        file = folder / MANIFEST
        try:
            return cls(folder, check_signed(read_bytes(file))["files"])
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{file}: damaged: {error}; if the files beside it are intact, delete it"
            ) from None

    def check(self, name: str, content: bytes) -> None:
        """Raise :class:`UserError` if ``content`` of a file is not what was recorded of it."""
        if name not in self.files:
            return
        size, digest = self.files[name]
        if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
            raise UserError(
                f"{self.folder / name}: damaged: it does not match its checksum; if it was changed "
                f"on purpose, delete {self.folder / MANIFEST}"
            )

    def checks(self, path: Path) -> Callable[[bytes], None]:
        """Return :meth:`check` of a file below the folder, as a function of its content."""
        return partial(self.check, path.relative_to(self.folder).as_posix())

    def add(self, name: str, content: bytes) -> None:
        """Record the content of a file, in memory."""
        self.files[name] = [len(content), hashlib.sha256(content).hexdigest()]

    def write(self) -> None:
        """Write the manifest."""
        write_text(self.folder / MANIFEST, signed({"files": self.files}))
