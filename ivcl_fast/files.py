"""Files and folders that appear complete or not at all, and locks between processes."""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

TEMPORARY = ".ivcl.tmp"
"""End of the names of files that are being written; only a killed process leaves one."""
LOCK = ".lock"
"""Name of the file in a folder that processes lock to have the folder for themselves."""


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file for writing; it takes the name ``path`` when the block ends.

    If the block raises or the process dies, ``path`` stays as it was. Until then the file has a
    name that no other process uses; what killed processes have left of writing ``path`` is deleted.
    ``durable=False`` does not wait for the disk, nor look for leftovers, which suits thousands of
    small files that can be made again. Errors of the system name ``path``.

    Example::

        >>> with atomic_write(Path("scores.csv")) as file:
        ...     file.write(b"0.5")
    """
    # Processes of two machines that share a file system may have the same number.
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f"{path.name}.{unique}{TEMPORARY}")
    if durable:
        with suppress(OSError):
            remove_temporaries(path.parent, [glob.escape(path.name)])
    try:
        with errors_name(path):
            with _create_locked(temporary) as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):  # nobody knows this file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _create_locked(temporary: Path) -> BinaryIO:
    """Open a new file and lock it, which tells :func:`remove_temporaries` that it is in use."""
    while True:
        file = temporary.open("wb")
        _lock(file.fileno(), fcntl.LOCK_NB)
        if temporary.exists():
            return file
        file.close()  # it was taken for a leftover before it was locked


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let errors of the system that name no file, such as that of a full disk, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def read_bytes(path: Path) -> bytes:
    """Read a file; errors of the system name it, even if it can be opened and not read."""
    with errors_name(path):
        return path.read_bytes()


@contextmanager
def atomic_folder(path: Path, files: Iterable[str]) -> Iterator[Path]:
    """Make an empty folder to fill with ``files``; it takes the name ``path`` when the block ends.

    All is on the disk then. Of a folder that already has the name, the ``files`` are deleted just
    before. ``files`` are patterns, as in :func:`remove_files`. If the block raises, ``path`` stays
    as it was. Raises ``OSError`` if other files are in the way; they are kept.
    """
    temporary, files = path.with_name(f"{path.name}.partial"), tuple(files)
    remove_files(temporary, files)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for each in (*temporary.rglob("*"), temporary):
            fsync(each)
        remove_files(path, files)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        remove_files(temporary, files)


def remove_files(folder: Path, patterns: Iterable[str]) -> None:
    """Delete files by patterns such as ``step-*/state.json``, and what is left of writing them.

    A pattern ``clips/**/*.png`` is of files in ``clips`` and in all folders below it. A folder in
    which files were looked for, ``folder`` included, is deleted if it is empty then. Other files
    stay. Links are neither followed nor deleted.
    """
    here: list[str] = []
    below: dict[str, list[str]] = {}
    patterns = list(patterns)
    patterns += [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    for pattern in patterns:
        first, _, rest = pattern.partition("/")
        if first == "**":
            below.setdefault("*", []).append(pattern)
        elif rest:
            below.setdefault(first, []).append(rest)
        else:
            here += [first, f"{first}.*{TEMPORARY}"]
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            if any(fnmatchcase(entry.name, pattern) for pattern in here):
                Path(entry.path).unlink(missing_ok=True)
        elif entry.is_dir(follow_symlinks=False):
            for name, rests in below.items():
                if fnmatchcase(entry.name, name):
                    remove_files(Path(entry.path), rests)
    with suppress(OSError):  # it is not empty
        folder.rmdir()


def remove_temporaries(folder: Path, patterns: Iterable[str]) -> None:
    """Delete what killed processes left of writing files of a folder, by patterns of their names.

    A file that is being written is locked. Where the file system has no locks, all of them stay.
    """
    for pattern in patterns:
        for leftover in folder.glob(f"{pattern}.*{TEMPORARY}"):
            # Network file systems lock files only if they are open for writing.
            with suppress(OSError), leftover.open("rb+") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text file atomically, as UTF-8; ``durable``: see :func:`atomic_write`.

    Bytes in names that are not UTF-8, which Python reads as lone surrogates, become ``\\udc..``.
    """
    with atomic_write(path, durable) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; the same value always gives the same bytes."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(
    path: Path, accepted: str, check: Callable[[bytes], None] = lambda content: None
) -> Any:
    """Read a JSON file; raises :class:`UserError`, which names what is ``accepted``.

    ``check`` is called with the content first.
    """
    try:
        content = read_bytes(path)
        check(content)
        return json.loads(content)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; accepted: {accepted}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); accepted: {accepted}") from None


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
    """Hold the lock of a folder, its file ``.lock``, or another lock file.

    The file is made if it is missing, and stays. Yields whether this process holds the lock:
    without ``wait`` it does not if another process does. Waiting is logged with ``busy``, what the
    other process does there. The system releases the lock when the process ends, however it ends.
    On a file system without locks every process is granted the lock.

    Example::

        >>> with locked(Path("build.lock"), wait=False) as held:
        ...     if not held:
        ...         print("another process is building")
    """
    # On network file systems, other machines see only locks on files that are open for writing.
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
