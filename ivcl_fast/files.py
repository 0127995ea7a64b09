"""Files and folders that appear complete or not at all, and locks between processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ivcl_fast.errors import UserError


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file for writing; it takes the name ``path`` when the block ends.

    If the block raises or the process dies, ``path`` stays as it was. ``durable=False`` does not
    wait for the disk, which suits thousands of small files that can be made again; their temporary
    name is fixed, so that the next attempt overwrites what a killed process left behind.

    Example::

        >>> with atomic_write(Path("scores.csv")) as file:
        ...     file.write(b"0.5")
    """
    suffix = f".{os.getpid()}.tmp" if durable else ".partial"
    temporary = path.with_name(path.name + suffix)
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, durable: bool = True) -> Iterator[Path]:
    """Make an empty folder to fill; it takes the name ``path`` when the block ends.

    A folder that already has the name is deleted just before. If the block raises, ``path`` stays
    as it was. ``durable`` flushes the files, the folder and its name to the disk.
    """
    temporary = path.with_name(f"{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if durable:
            for each in (*temporary.rglob("*"), temporary):
                fsync(each)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        if durable:
            fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text file atomically, as UTF-8; ``durable``: see :func:`atomic_write`."""
    with atomic_write(path, durable) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; the same value always gives the same bytes."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, accepted: str) -> Any:
    """Read a JSON file; raises :class:`UserError`, which names what is ``accepted``."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; accepted: {accepted}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); accepted: {accepted}") from None


def fsync(path: Path) -> None:
    """Flush the content of a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a folder, or on a lock file, which is made if it is missing and stays.

    Yields whether this process holds the lock: without ``wait`` it does not if another process
    does. The system releases the lock when the process ends, however it ends. On a file system
    without locks every process is granted the lock.

    Example::

        >>> with locked(Path("build.lock"), wait=False) as held:
        ...     if not held:
        ...         print("another process is building")
    """
    # Network file systems lock files only if they are open for writing.
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags, 0o666)
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError:
            pass  # the file system has no locks
        yield held
    finally:
        os.close(handle)
