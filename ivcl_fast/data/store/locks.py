"""Locks between processes that go with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path`` (made if missing); yields whether it is ours.

    Without ``wait`` it is not if another process holds it. The file stays behind.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # network file systems want it writable
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
