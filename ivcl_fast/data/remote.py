"""Data in object storage, or wherever else fsspec reads, copied to this machine before use.

``videos:s3://bucket/clips`` and other formats of a folder copy the folder; ``csv:gs://bucket/a.csv``
copies the list, those beside it, and the videos or folders of frames that they name. The next time,
only what has changed is copied.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from ivcl_fast.data.dataset import Dataset, Media
from ivcl_fast.data.decode.images import is_image
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, read_bytes, write_text
from ivcl_fast.progress import Bar
from ivcl_fast.text import first_line

log = logging.getLogger(__name__)

FOLDER = "remote"
"""Folder of the copies, in that of the synthetic data sets."""
RECORD = ".fetched.json"
"""Which version of each file was copied."""
LISTS = (".csv", ".txt", ".tsv")
VERSION = ("size", "ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created")
"""What file systems report about a file; it differs if the file has changed."""
BATCH = 64
"""Number of files that are copied at a time."""


class Remote(NamedTuple):
    """A place of data outside this machine."""

    url: str

    def copy(self, data_dir: Path, is_list: bool) -> Path:
        """Return where the copy is on this machine; ``is_list``: of a file that lists videos."""
        place = PurePosixPath(self.url.partition("://")[2])
        # A folder is the same with and without a slash at the end.
        digest = hashlib.sha256(self.url.rstrip("/").encode()).hexdigest()[:8]
        folder = data_dir / FOLDER / f"{place.stem}-{digest}"
        return folder / place.name if is_list else folder

    def fetch(self, place: Path, is_list: bool, open: Callable[[], Dataset]) -> None:
        """Copy the data, or what has changed of them, to :meth:`copy`.

        ``open`` opens the copy of a list. Raises :class:`UserError` if the place cannot be read,
        and ``OSError`` if the disk of the copy is full.
        """
        copy = place.parent if is_list else place
        copy.mkdir(parents=True, exist_ok=True)
        try:
            with locked(copy, busy="copied"):  # so that only one rank copies
                files = _Files(self.url.rpartition("/")[0] if is_list else self.url, copy)
                if not is_list:
                    files.take(files.list_folder(deep=True))
                    files.drop_others()
                    return
                beside = files.list_folder()
                if place.name not in beside:
                    raise UserError(f"{self.url}: no such file; accepted: a list of videos")
                files.take(n for n in beside if n.lower().endswith(LISTS) or n == place.name)
                files.drop_others({"."})  # a list that is gone is read no longer
                named = [_listed(one) for one in open().media() if one.files]
                inside = [p for p in named if ".." not in p.parts and p.is_relative_to(copy)]
                wanted, folders = files.find(p.relative_to(copy).as_posix() for p in inside)
                files.take(wanted)
                files.drop_others(folders)
        except ImportError as error:
            raise UserError(
                f"{self.url}: {error}; accepted: pip install 'ivcl_fast[remote]' and the package "
                "of that storage, such as s3fs or gcsfs"
            ) from None
        except UserError:
            raise
        except Exception as error:  # each kind of storage has its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, error.strerror, str(copy)) from None
            raise UserError(f"{self.url}: cannot be read: {first_line(error)}") from None


def _listed(media: Media) -> Path:
    """Return what a list names: a file, or the folder of frames that were copied before."""
    first = media.files[0]
    return first if PurePath(media.name).name == first.name else first.parent


class _Files:
    """The files of a remote folder and their copies."""

    def __init__(self, url: str, copy: Path) -> None:
        from fsspec.core import url_to_fs

        self.system, self.root = url_to_fs(url)
        self.root = self.root.rstrip("/")
        self.copy, self.found = copy, dict[str, Mapping[str, Any]]()
        self.taken: dict[str, str] = {}
        try:
            recorded = json.loads(read_bytes(copy / RECORD))
            # Nothing outside the folder is ever deleted, whatever the record says.
            self.taken = {name: str(of) for name, of in recorded.items() if _is_inside(name)}
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError):
            log.warning("%s: damaged, so all files are copied again", copy / RECORD)

    def list_folder(self, below: str = "", deep: bool = False) -> list[str]:
        """List the files of the folder, or of one below it, except for hidden ones."""
        place = f"{self.root}/{below}".rstrip("/")
        listed = self.system.find(place, maxdepth=None if deep else 1, detail=True)
        names = []
        for path, about in listed.items():
            name = path[len(self.root) :].lstrip("/")
            if _is_inside(name) and not any(part.startswith(".") for part in name.split("/")):
                self.found[name] = about
                names.append(name)
        if not self.found:
            raise FileNotFoundError("no such folder, or it is empty")
        return names

    def find(self, names: Iterable[str]) -> tuple[list[str], set[str]]:
        """List those of these files that exist, and the images in those that are folders.

        Returns the names of the folders, too. Others are found missing when they are opened.
        """
        files, folders = list[str](), set[str]()
        for name in names:
            place = f"{self.root}/{name}"
            if name not in self.found and self.system.isfile(place):
                self.found[name] = self.system.info(place)
            if name in self.found:
                files.append(name)
            elif self.system.isdir(place):
                folders.add(name)
                files += [file for file in self.list_folder(name) if is_image(Path(file))]
        return files, folders

    def drop_others(self, folders: Set[str] | None = None) -> None:
        """Delete the copies of files that are not found any more, in these ``folders`` or all."""
        for name in self.taken.keys() - self.found.keys():
            if folders is None or str(PurePosixPath(name).parent) in folders:
                (self.copy / name).unlink(missing_ok=True)
                del self.taken[name]
                with suppress(OSError):  # it is not empty
                    (self.copy / name).parent.rmdir()
        self._write_record()

    def take(self, names: Iterable[str]) -> None:
        """Copy those of these files that have changed, in batches."""
        versions = {name: str([self.found[name].get(key) for key in VERSION]) for name in names}
        wanted = [
            name for name, version in versions.items()
            if self.taken.get(name) != version or not (self.copy / name).is_file()
        ]  # fmt: skip
        with Bar("copying", len(wanted), "files") as bar:
            for first in range(0, len(wanted), BATCH):
                batch = wanted[first : first + BATCH]
                self._take(batch)
                self.taken |= {name: versions[name] for name in batch}
                self._write_record()
                bar(first + len(batch), len(wanted))

    def _take(self, names: list[str]) -> None:
        """Copy files; until they are recorded, they count as missing."""
        for name in names:
            self.taken.pop(name, None)
            (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
        self._write_record()
        copies = [self.copy / name for name in names]
        try:
            self.system.get([f"{self.root}/{name}" for name in names], [*map(str, copies)])
            for name, copy in zip(names, copies, strict=True):
                size, promised = copy.stat().st_size, self.found[name].get("size")
                if promised is not None and size != promised:
                    raise OSError(f"{name}: received {size:,} of {promised:,} bytes")
        except BaseException:
            for copy in copies:
                copy.unlink(missing_ok=True)
            raise

    def _write_record(self) -> None:
        write_text(self.copy / RECORD, json.dumps(self.taken, indent=1))


def _is_inside(name: str) -> bool:
    """Whether the name of a file leads to a place in the folder."""
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")
