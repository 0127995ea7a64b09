"""Stores in object storage (``s3://``, ``gs://``, ``memory://``) by fsspec, and their local copies.

A store is built in its copy and then uploaded. Opening it copies the index and the labels. A thread
copies shards as long as the disk has room; frames of other shards are read over the network. The
order of clips does not depend on the shards that have been copied.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write, locked, write_text
from ivcl_fast.text import first_line

log = logging.getLogger(__name__)

ORIGIN = "origin.txt"
"""File with the URL of a store, in the folder of its copy."""
FREE_SHARE = 0.1
"""Fraction of the disk to keep free when copying shards."""


class RemoteStore:
    """A store in object storage, and its copy, which may lack shards."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        cache_folder = Path(os.environ.get("IVCL_FAST_CACHE", "~/.cache/ivcl_fast")).expanduser()
        self.copy = cache_folder / "stores" / f"{self.url.rpartition('/')[2]}-{digest}"
        """The copy, a folder that may be deleted at any time."""
        if "://" not in self.url:
            raise UserError(f"{url}: expected a folder, such as s3://BUCKET/DIR, got none")
        with remote_errors(self.url):
            from fsspec.core import url_to_fs

            self._system, self._root = url_to_fs(self.url, use_listings_cache=False)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file, by name."""
        with remote_errors(self.url), suppress(FileNotFoundError):
            found = self._system.find(self._root, maxdepth=1, detail=True).items()
            return {path.rpartition("/")[2]: about["size"] for path, about in found}
        return {}

    def download(self, names: Iterable[str]) -> None:
        """Copy files, except for shards that exist in the copy."""
        self.copy.mkdir(parents=True, exist_ok=True)
        sizes = self.sizes()
        for name in names:
            target = self.copy / name
            if name.endswith(".u8") and target.exists():
                continue
            with remote_errors(self.url), atomic_write(target) as file:
                self._system.get_file(f"{self._root}/{name}", file.name)
                if (got := os.path.getsize(file.name)) != (size := sizes[name]):
                    raise UserError(f"{self.url}/{name}: expected {size:,} bytes, got {got:,}")

    def upload(self) -> None:
        """Upload the copy, the index last, and delete shards that are no longer in it."""
        sizes = self.sizes()
        files = [path for path in self.copy.iterdir() if path.suffix in (".u8", ".json")]
        files += sorted(self.copy.glob("*.safetensors"), reverse=True)  # the labels, the index
        with remote_errors(self.url):
            for path in files:
                if path.suffix != ".u8" or sizes.get(path.name) != path.stat().st_size:
                    self._system.put_file(str(path), f"{self._root}/{path.name}")
            for name in sizes.keys() - {path.name for path in files}:
                if name.startswith("shard-"):
                    self._system.rm_file(f"{self._root}/{name}")
        local_store.cache_clear()

    def read(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read parts of shards concurrently; each is a file, a start and an end in bytes."""
        files, starts, ends = (list(column) for column in zip(*places, strict=True))
        with remote_errors(self.url):
            paths = [f"{self._root}/{file}" for file in files]
            return self._system.cat_ranges(paths, starts, ends, on_error="raise")

    def download_later(self, shards: Sequence[str]) -> None:
        """Copy shards in a thread, unless another process copies them."""

        def download() -> None:
            with locked(self.copy, wait=False) as held:
                for name in shards if held else ():
                    disk = shutil.disk_usage(self.copy)
                    if disk.free < FREE_SHARE * disk.total:
                        log.warning("%s: the disk is nearly full; shards are not copied", self.copy)
                        return
                    try:
                        self.download([name])
                    except (OSError, UserError) as error:
                        log.warning("%s: not copied: %s", name, error)

        threading.Thread(target=download, name="shards", daemon=True).start()


@cache
def local_store(place: str) -> Path:
    """Return the folder of a local store, or the copy of a store in object storage.

    The copy gets the current index and labels.
    """
    if "://" not in place:
        return Path(place)
    store = RemoteStore(place)
    store.download(name for name in store.sizes() if not name.startswith("shard-"))
    write_text(store.copy / ORIGIN, store.url)
    return store.copy


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn the errors of any storage back end into :class:`UserError`."""
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
        raise UserError(f"{url}: {first_line(error)}") from None
