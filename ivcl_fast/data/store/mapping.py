"""Files mapped into memory without a descriptor for each, so that a store may have any number."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
)
_libc.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t
_libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path) -> np.ndarray:
    """Map a file for reading at random: uint8 ``[bytes]``, read-only.

    Python's and NumPy's own maps keep the file open as long as they live. The system reads only
    what is asked for, and nothing around it.
    """
    size = path.stat().st_size
    if not size:  # empty files cannot be mapped
        return np.empty(0, np.uint8)
    handle = os.open(path, os.O_RDONLY)
    try:
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(handle)
    _libc.madvise(address, size, mmap.MADV_RANDOM)
    content = (ctypes.c_uint8 * size).from_address(address)
    # Not at exit, when threads may still read.
    weakref.finalize(content, _libc.munmap, address, size).atexit = False
    array = np.frombuffer(memoryview(content), np.uint8)
    array.flags.writeable = False
    return array


def read_ahead(array: np.ndarray, rows: np.ndarray) -> None:
    """Tell the system that these rows of a mapped file are needed soon, each of them at once."""
    start, step = array.ctypes.data, array.strides[0]
    for first in (start + rows * step).tolist():
        page = first - first % mmap.PAGESIZE
        _libc.madvise(page, first + step - page, mmap.MADV_WILLNEED)
