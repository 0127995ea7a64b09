"""Download data from object storage, or any other file system of fsspec, before use.

``videos:s3://bucket/clips`` and other folder formats copy the folder; ``csv:gs://bucket/a.csv``
copies the list, the lists beside it, and the videos or folders of frames that they name. Later
runs copy only what has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from ivcl_fast.data.dataset import Dataset, Media
from ivcl_fast.data.decode.media import is_image
from ivcl_fast.data.store.folder import Folder, remote_errors
from ivcl_fast.errors import UserError
from ivcl_fast.files import errors_name, locked, read_bytes, write_text
from ivcl_fast.progress import Bar

FOLDER = "remote"
"""Folder of the copies, inside ``data_dir``."""
RECORD = ".fetched.json"
"""File that records the copied version of each file."""
LISTS = (".csv", ".txt", ".tsv")
VERSION = ("size", "ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created")
"""Properties that file systems report and that change with the file."""
BATCH = 64
"""Number of files copied at a time."""

Found = Mapping[str, Mapping[str, Any]]
"""What the file system reports about each file, by its path in the folder."""


class Remote(NamedTuple):
    """A remote data set."""

    url: str

    def copy(self, data_dir: Path, is_list: bool) -> Path:
        """Return the path of the local copy; ``is_list``: the URL is a list of videos."""
        place = PurePosixPath(self.url.partition("://")[2])
        # A trailing slash makes no difference.
        digest = hashlib.sha256(self.url.rstrip("/").encode()).hexdigest()[:8]
        folder = data_dir / FOLDER / f"{place.stem}-{digest}"
        return folder / place.name if is_list else folder

    def fetch(self, place: Path, is_list: bool, open: Callable[[], Dataset]) -> None:
        """Copy new and changed data to :meth:`copy`.

        ``open`` opens the copy of a list. Raises :class:`UserError` if the place cannot be read,
        and ``OSError`` if the disk of the copy is full.
        """
        copy = place.parent if is_list else place
        copy.mkdir(parents=True, exist_ok=True)
        # The lock lets only one rank copy.
        with remote_errors(self.url), errors_name(copy), locked(copy, busy="copied"):
            source = _Folder(self.url.rpartition("/")[0] if is_list else self.url)
            if not is_list:
                _copy_changed(source, source.files(), copy)
                return
            beside = source.files(maxdepth=1)
            if place.name not in beside:
                raise UserError(f"{self.url}: expected a list of videos, got no such file")
            lists = {n: beside[n] for n in beside if n.lower().endswith(LISTS) or n == place.name}
            _copy_changed(source, lists, copy, LISTS)
            named = [_listed(one) for one in open().media() if one.files]
            inside = [p for p in named if ".." not in p.parts and p.is_relative_to(copy)]
            wanted = dict(lists)
            for name in (path.relative_to(copy).as_posix() for path in inside):
                wanted |= source.named(name)
            _copy_changed(source, wanted, copy)


def _listed(media: Media) -> Path:
    """Return what a list names: a file, or a folder of frames that was copied before."""
    first = media.files[0]
    return first if PurePath(media.name).name == first.name else first.parent


class _Folder:
    """A remote folder."""

    def __init__(self, url: str) -> None:
        self.system, self.root = Folder(url).remote

    def files(self, below: str = "", maxdepth: int | None = None) -> Found:
        """List the files of the folder, or of one below it, except for hidden ones."""
        place = f"{self.root}/{below}".rstrip("/")
        listed = self.system.find(place, maxdepth=maxdepth, detail=True)
        found = {path[len(self.root) :].lstrip("/"): about for path, about in listed.items()}
        found = {n: about for n, about in found.items() if _is_inside(n) and "/." not in f"/{n}"}
        if not found:
            raise UserError(f"{self.root}: expected a folder with files, got none")
        return found

    def named(self, name: str) -> Found:
        """Return a file, or the images of a folder; nothing if there is neither."""
        place = f"{self.root}/{name}"
        if self.system.isfile(place):
            return {name: self.system.info(place)}
        if not self.system.isdir(place):  # reported as missing when it is opened
            return {}
        return {n: about for n, about in self.files(name, 1).items() if is_image(Path(n))}


def _copy_changed(
    source: _Folder, found: Found, copy: Path, suffixes: tuple[str, ...] = ("",)
) -> None:
    """Copy the files that have changed, and delete copies whose source is gone.

    ``suffixes``: of the files that may be deleted.
    """
    record: dict[str, str] = {}
    with suppress(FileNotFoundError, ValueError, AttributeError):  # damaged: all are copied again
        saved = json.loads(read_bytes(copy / RECORD))
        # Nothing outside the folder is ever deleted, whatever the record says.
        record = {name: version for name, version in saved.items() if _is_inside(name)}
    for name in sorted(record.keys() - found.keys()):
        if name.lower().endswith(suffixes):
            (copy / name).unlink(missing_ok=True)
            del record[name]
            with suppress(OSError):  # it is not empty
                (copy / name).parent.rmdir()
    versions = {name: str([about.get(key) for key in VERSION]) for name, about in found.items()}
    wanted = [
        name for name, version in versions.items()
        if record.get(name) != version or not (copy / name).is_file()
    ]  # fmt: skip
    with Bar("copying", len(wanted), "files") as bar:
        for first in range(0, len(wanted), BATCH):
            batch = wanted[first : first + BATCH]
            _copy(source, batch, found, copy)
            record |= {name: versions[name] for name in batch}
            write_text(copy / RECORD, json.dumps(record, indent=1))
            bar(first + len(batch), len(wanted))
    write_text(copy / RECORD, json.dumps(record, indent=1))


def _copy(source: _Folder, names: list[str], found: Found, copy: Path) -> None:
    """Copy files; each is renamed into place when it is complete."""
    partial = [copy / f"{name}.partial" for name in names]
    for path in partial:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.system.get([f"{source.root}/{name}" for name in names], [*map(str, partial)])
        for name, path in zip(names, partial, strict=True):
            size, promised = path.stat().st_size, found[name].get("size")
            if promised is not None and size != promised:
                raise OSError(f"{name}: expected {promised:,} bytes, got {size:,}")
            path.replace(copy / name)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _is_inside(name: str) -> bool:
    """Whether the name of a file stays inside the folder."""
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")
