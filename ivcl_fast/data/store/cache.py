"""Stores in object storage: their shards are read from there, and copied to this machine.

The index and the labels are copied when a store is opened. Frames of shards that are not here yet
are read from the object storage; meanwhile, a thread copies these shards whole, as long as the disk
has room. A copied shard stays: batches are in random order, so another one would be no better. The
order does not depend on what is here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from ivcl_fast.data.store.folder import Folder, remote_errors
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, write_text

log = logging.getLogger(__name__)

ORIGIN = "origin.txt"
"""File with the URL of a store, in the folder of its copy."""
FREE_SHARE = 0.1
"""Share of the disk that copied shards leave free."""


def cache_folder() -> Path:
    """Return the folder of this machine for copies of shards, which may be deleted at any time."""
    return Path(os.environ.get("IVCL_FAST_CACHE", "~/.cache/ivcl_fast")).expanduser()


def local_store(place: str | Path) -> Path:
    """Return a local store as it is; of a store in object storage, copy the index and labels."""
    return _copied(str(place).rstrip("/")) if "://" in str(place) else Path(place)


@cache
def _copied(url: str) -> Path:
    folder = Folder(url)
    name = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    copy = cache_folder() / "stores" / name
    copy.mkdir(parents=True, exist_ok=True)
    small = {file for file in folder.sizes() if not file.startswith("shard-")}
    with locked(copy, busy="copied"):  # by another rank
        content = folder.read(small)
        for file in (path.name for path in copy.glob("*.safetensors")):
            if file not in content:
                (copy / file).unlink()
        for file, data in content.items():
            Folder(copy).write(file, data)
        write_text(copy / ORIGIN, url)
    return copy


def forget_copies() -> None:
    """Copy indexes again when stores are opened, because they have changed."""
    _copied.cache_clear()


class RemoteShards:
    """The shards of a store in object storage, and those of them that are on this machine."""

    def __init__(self, copy: Path) -> None:
        """``copy``: a folder that :func:`local_store` made."""
        self.copy, self.origin = copy, Folder((copy / ORIGIN).read_text())
        self._queue = SimpleQueue[tuple[str, int]]()
        self._queued = set[str]()

    def read(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read parts of shards, each given by its file, start and end, many at a time."""
        files, starts, ends = (list(column) for column in zip(*places, strict=True))
        with remote_errors(self.origin.place):
            system, root = self.origin.remote
            paths = [f"{root}/{file}" for file in files]
            return system.cat_ranges(paths, starts, ends, on_error="raise")

    def copy_later(self, file: str, size: int) -> None:
        """Copy a shard in a thread, if there is room for it."""
        if file in self._queued:
            return
        if not self._queued:
            threading.Thread(target=self._copy_all, name="shards", daemon=True).start()
        self._queued.add(file)
        self._queue.put((file, size))

    def _copy_all(self) -> None:
        while True:
            file, size = self._queue.get()
            disk = shutil.disk_usage(self.copy)
            if disk.free - size < FREE_SHARE * disk.total:
                log.warning("%s: the disk is nearly full; further shards are not copied", self.copy)
                return
            try:
                self.fetch(file, size)
            except (OSError, UserError) as error:
                log.warning("%s: not copied: %s", file, error)

    def fetch(self, file: str, size: int) -> None:
        """Copy a shard, unless another rank has copied it."""
        target, partial = self.copy / file, self.copy / f"{file}.partial"
        with locked(self.copy / f"{file}.lock", busy="copied"):
            if target.exists():
                return
            with remote_errors(self.origin.place):
                system, root = self.origin.remote
                system.get_file(f"{root}/{file}", str(partial))
            if (got := partial.stat().st_size) != size:
                partial.unlink()
                raise UserError(f"{self.origin}/{file}: expected {size:,} bytes, got {got:,}")
            partial.replace(target)
        with suppress(FileNotFoundError):
            (self.copy / f"{file}.lock").unlink()
