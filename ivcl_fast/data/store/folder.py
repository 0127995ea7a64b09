"""A folder of files, local or in object storage (``s3://``, ``gs://``, ``memory://``) by fsspec."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, cast

from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write, locked, read_bytes
from ivcl_fast.text import first_line


class Folder:
    """A local folder or a URL; missing files are not errors."""

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.path = None if "://" in self.place else Path(place)
        """The local folder; None for a URL."""

    def __str__(self) -> str:
        return self.place

    @cached_property
    def remote(self) -> tuple[Any, str]:
        """The file system of fsspec, and the path of the folder in it."""
        with remote_errors(self.place):
            from fsspec.core import url_to_fs

            system, root = url_to_fs(self.place, use_listings_cache=False)
            return system, root.rstrip("/")

    def create(self) -> None:
        """Create the folder; raises :class:`UserError` if it is a file."""
        if self.path is not None:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"{self.path}: expected a folder, got a file")
            self.path.mkdir(parents=True, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file, by name."""
        with remote_errors(self.place), suppress(FileNotFoundError, NotADirectoryError):
            if self.path is not None:
                return {e.name: e.stat().st_size for e in os.scandir(self.path) if e.is_file()}
            system, root = self.remote
            found = system.find(root, maxdepth=1, detail=True).items()
            return {path.rpartition("/")[2]: about["size"] for path, about in found}
        return {}

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read files, from object storage many at a time."""
        names = list(names)
        if self.path is None:
            with remote_errors(self.place):
                system, root = self.remote
                paths = [f"{root}/{name}" for name in names]
                found = system.cat(paths, on_error="omit") if paths else {}
                return {path.rpartition("/")[2]: content for path, content in found.items()}
        content = dict[str, bytes]()
        for name in names:
            with suppress(FileNotFoundError):
                content[name] = read_bytes(self.path / name)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a local file that becomes the file ``name`` when the block ends."""
        if self.path is not None:
            with atomic_write(self.path / name) as file:
                yield file
            return
        with NamedTemporaryFile() as temporary:
            yield cast(BinaryIO, temporary)
            temporary.flush()
            with remote_errors(self.place):
                system, root = self.remote
                system.put_file(temporary.name, f"{root}/{name}")

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            with remote_errors(self.place), suppress(FileNotFoundError):
                if self.path is not None:
                    (self.path / name).unlink()
                else:
                    system, root = self.remote
                    system.rm_file(f"{root}/{name}")

    def locked(self, name: str) -> AbstractContextManager[bool]:
        """Hold a lock file; yields whether this process holds it. Object storage has no locks."""
        return nullcontext(True) if self.path is None else locked(self.path / name, wait=False)


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn the errors of any storage back end into :class:`UserError`, if ``url`` is a URL."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{url}: expected pip install 'ivcl_fast[remote]' and the package of that storage, "
            f"such as ivcl_fast[s3] or gcsfs, got {error}"
        ) from None
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if "://" not in url or full:
            raise
        raise UserError(f"{url}: {first_line(error)}") from None
