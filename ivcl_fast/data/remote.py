"""Copy a data set from object storage, or any other file system of fsspec, before use.

``videos:s3://bucket/clips``, and other formats of a folder, copy the folder once; later runs use
the copy. An interrupted copy is continued.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ivcl_fast.errors import UserError
from ivcl_fast.files import errors_name, locked
from ivcl_fast.progress import Bar
from ivcl_fast.text import first_line

FOLDER = "remote"
"""Folder of the copies, inside ``data_dir``."""
BATCH = 64
"""Number of files copied at a time."""


class Remote(NamedTuple):
    """A remote data set."""

    url: str

    def fetch(self, data_dir: Path) -> Path:
        """Copy the data set, unless there is a copy, and return the folder of the copy.

        Raises :class:`UserError` if the place cannot be read, and ``OSError`` if the disk is full.
        """
        url = self.url.rstrip("/")
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        copy = data_dir / FOLDER / f"{PurePosixPath(url).name}-{digest}"
        if copy.exists():
            return copy
        partial = copy.with_name(f"{copy.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        with locked(copy.with_name(f"{copy.name}.lock"), busy="copied"):  # only one rank copies
            if not copy.exists():
                self._copy(partial)
                partial.rename(copy)
        return copy

    def _copy(self, folder: Path) -> None:
        """Copy the files that are missing, except for hidden ones."""
        try:
            from fsspec.core import url_to_fs

            system, root = url_to_fs(self.url, use_listings_cache=False)
            found = {
                path[len(root) :].lstrip("/"): about["size"]
                for path, about in system.find(root, detail=True).items()
            }
        except ImportError as error:
            raise UserError(
                f"{self.url}: expected pip install 'ivcl_fast[remote]' and the package of that "
                f"storage, such as ivcl_fast[s3] or gcsfs, got {error}"
            ) from None
        except Exception as error:  # storage back ends raise errors of many kinds
            raise UserError(f"{self.url}: {first_line(error)}") from None
        # A name with ".." could be outside the folder.
        names = [name for name in found if name and "/." not in f"/{name}"]
        if not names:
            raise UserError(f"{self.url}: expected a folder with files, got none")
        missing = [name for name in names if not _has_size(folder / name, found[name])]
        with Bar("copying", len(missing), "files") as bar, errors_name(folder):
            for first in range(0, len(missing), BATCH):
                batch = missing[first : first + BATCH]
                for name in batch:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                system.get([f"{root}/{name}" for name in batch], [str(folder / n) for n in batch])
                for name in batch:
                    if not _has_size(folder / name, found[name]):
                        raise UserError(f"{self.url}/{name}: expected {found[name]:,} bytes")
                bar(first + len(batch), len(missing))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
