"""Atomic writes of files and folders, and locks between processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

TEMPORARY = ".ivcl.tmp"
"""Suffix of files being written; only a killed process leaves one behind."""
LOCK = ".lock"
"""Name of the lock file of a folder."""


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file for writing, and rename it to ``path`` when the block ends.

    If the block raises or the process dies, ``path`` is unchanged. ``durable=False`` skips the
    fsync, for many small files that can be written again. Operating-system errors name ``path``.

    Example::

        >>> with atomic_write(Path("scores.csv")) as file:
        ...     file.write(b"0.5")
    """
    # Processes on two machines that share a file system may have the same id.
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f"{path.name}.{unique}{TEMPORARY}")
    try:
        with errors_name(path):
            with temporary.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Add ``path`` to operating-system errors without a file name, such as a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def read_bytes(path: Path) -> bytes:
    """Read a file; operating-system errors name it."""
    with errors_name(path):
        return path.read_bytes()


def sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of a file."""
    with errors_name(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder to fill, and rename it to ``path`` when the block ends.

    Its files are flushed to disk first, and an earlier folder ``path`` is replaced. If the block
    raises, ``path`` is unchanged.
    """
    temporary = path.with_name(f"{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for each in (*temporary.rglob("*"), temporary):
            fsync(each)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(folder: Path, patterns: Iterable[str]) -> None:
    """Delete temporary files that killed processes left in a folder, for these patterns of names.

    No other process may be writing them.
    """
    for pattern in patterns:
        for leftover in folder.glob(f"{pattern}.*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text file atomically, as UTF-8; ``durable``: see :func:`atomic_write`.

    Bytes of file names that are not valid UTF-8 are written as ``\\udc..``.
    """
    with atomic_write(path, durable) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; the same value always gives the same bytes."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, expected: str) -> Any:
    """Read a JSON file; raise :class:`UserError` if it is invalid.

    ``expected``: its content, for the message.
    """
    try:
        return json.loads(read_bytes(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); expected {expected}") from None


def fsync(path: Path) -> None:
    """Flush the content of a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with errors_name(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, wait: bool = True, busy: str = "in use") -> Iterator[bool]:
    """Hold the lock of a folder (its file ``.lock``) or of a lock file.

    Yields whether this process holds the lock, which is always true with ``wait``. While it waits,
    it logs ``busy``, the activity of the other process. The lock is released when the process ends.
    On a file system without locks, every process gets the lock.

    Example::

        >>> with locked(Path("build.lock"), wait=False) as held:
        ...     if not held:
        ...         print("another process is building")
    """
    # On network file systems, other machines only see locks on files opened for writing.
    handle = os.open(path / LOCK if path.is_dir() else path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        held = _lock(handle, fcntl.LOCK_NB)
        if wait and not held:
            log.warning("%s: %s by another process; waiting for it", path, busy)
            held = _lock(handle, 0)
        yield held
    finally:
        os.close(handle)


def _lock(handle: int, flags: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | flags)
    except BlockingIOError:
        return False
    except OSError:
        pass  # the file system has no locks
    return True
