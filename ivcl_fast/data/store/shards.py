"""Shards: the parts of a store or of an index, which any number of processes build together.

``shard-<clips>.json`` describes a shard: its clips in order, the unusable ones, and the checksum.
``shard-<clips>-<contents>.u8`` holds the data. ``<clips>`` is a digest of the settings and of the
clips' names, ``<contents>`` one of the contents of their files, so changed clips change only their
shards, and videos that were moved or copied are not decoded again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.store.folder import Folder
from ivcl_fast.data.store.source import GONE, Source
from ivcl_fast.data.store.table import Columns, Index
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

VERSION = 5
INDEX, BAD_FILES = "index.safetensors", "bad_files.json"
SHARD_FILE = re.compile("shard-[0-9a-f]{16}[-.]")
SHARD_VIDEOS = 256
"""Default of the largest average number of clips in a shard: 1 GB of CATER at 64 pixels."""
SHARDS = 64
"""Smallest average number of shards of a data set with more clips than this."""
WAIT_SECONDS = 1.0
"""Seconds between two checks of the shards that other processes build."""

Record = dict[str, Any]
Progress = Callable[[int, int], None]
Append = Callable[[Source, str, dict[str, Any], BinaryIO], tuple[int, str]]
"""Append the data of a clip to its shard; return its number of frames, and further facts.

Called with the source, the name of the clip, the settings and the file, in a worker process.
Raises :class:`VideoError` if the clip cannot be used.
"""


class Part(NamedTuple):
    """Part ``number`` of ``total`` of the shards, from 0."""

    number: int
    total: int


class Shard(NamedTuple):
    """Clips that are stored together."""

    id: str
    """``shard-<clips>``."""
    names: list[str]
    states: str
    """Digest of the states of the clips' files."""

    def is_current(self, record: Record, size: int | None) -> bool:
        """Whether the record describes this shard; ``size``: of the data file."""
        return record["states"] == self.states and record["bytes"] == size


@dataclass(frozen=True)
class Task:
    """A shard to build in a worker process."""

    shard: Shard
    folder: Folder
    source: Source
    """The clips of the shard."""
    settings: dict[str, Any]
    append: Append
    refused: dict[str, str] = field(default_factory=dict)
    """Clips that crashed a decoder, with the reason."""

    @property
    def marker(self) -> str:
        """Name of the file that names the clip that is being decoded."""
        return f"{self.shard.id}.now"


class Pool(Protocol):
    """Workers that build shards."""

    def run(
        self, function: Callable[[Task], int], tasks: Iterable[Task],
        replace: Callable[[Task, str], Task],
    ) -> Iterator[int]: ...  # fmt: skip


def build_shard(task: Task) -> int:
    """Build a shard; return its number of clips, 0 if another process builds or has built it."""
    shard, folder = task.shard, task.folder
    with folder.locked(f"{shard.id}.lock") as held:
        record = read_records(folder, [shard]).get(shard.id)
        size = folder.sizes().get(record["file"]) if record else None
        if not held or (record and shard.is_current(record, size)):
            return 0
        contents = [task.source.contents(name) for name in shard.names]
        moved = record and record["bytes"] == size and record["contents"] == contents
        if record is None or not moved or record["crashed"]:
            record = decode(task, contents)
        folder.write(f"{shard.id}.json", to_json(record | {"states": shard.states}))
        folder.delete([task.marker])
    return len(shard.names)


def decode(task: Task, contents: Sequence[str]) -> Record:
    """Write the data of a shard, and return its record."""
    clips, bad_files = list[tuple[str, int, int, str]](), dict[str, str]()
    name_of_data = f"{task.shard.id}-{digest(contents, task.refused)}.u8"
    with task.folder.writing(name_of_data) as file:
        for name in task.shard.names:
            start = file.tell()
            task.folder.write(task.marker, name.encode(errors="surrogateescape"))
            try:
                if reason := task.refused.get(name):
                    raise VideoError(reason)
                frames, facts = task.append(task.source, name, task.settings, file)
                clips.append((name, start, frames, facts))
            except VideoError as error:
                bad_files[name] = str(error)
                file.seek(start)
                file.truncate()
        size = file.tell()
        file.flush()
        sha256 = checksum(Path(file.name))
    return {
        "file": name_of_data, "bytes": size, "sha256": sha256, "contents": contents,
        "clips": clips, "bad_files": bad_files, "crashed": bool(task.refused),
    }  # fmt: skip


def read_records(folder: Folder, shards: Iterable[Shard]) -> dict[str, Record]:
    """Read the records of shards, by id; missing and damaged ones are left out."""
    records = dict[str, Record]()
    for name, content in folder.read(f"{shard.id}.json" for shard in shards).items():
        with suppress(ValueError):
            records[name.removesuffix(".json")] = json.loads(content)
    return records


def checksum(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    """Convert a value to JSON; the same value always gives the same bytes."""
    return (json.dumps(value, indent=1) + "\n").encode()


def digest(*values: Any) -> str:
    """Return 16 hexadecimal digits that identify values with the same ``repr``."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def refuse(task: Task, reason: str) -> Task:
    """Return the shard to build after a clip has crashed its worker."""
    marker = task.folder.read([task.marker]).get(task.marker)
    if marker is None:
        raise UserError(f"a worker process was lost: {reason}")
    name = marker.decode(errors="surrogateescape")
    reason = f"decoding failed: {reason}; touch the file to try again"
    log.warning("%s: %s", name, reason)
    return replace(task, refused=task.refused | {name: reason})


class Build:
    """The build of a store or an index: its shards, and the index over them."""

    def __init__(
        self,
        source: Source,
        out: str | Path,
        settings: dict[str, Any],
        append: Append,
        verb: str = "decoding",
    ) -> None:
        """Divide the clips into shards; ``verb``: for the log.

        ``settings`` may have ``shard_videos``, the largest average number of clips in a shard.
        Raises :class:`UserError` if there are no clips, or two with the same name.
        """
        if not source.names:
            raise UserError("the data set has no videos")
        name, count = Counter(source.names).most_common(1)[0]
        if count > 1:
            raise UserError(f"{count} videos have the name {name}")
        self.source, self.folder, self.append, self.verb = source, Folder(out), append, verb
        self.settings = {"version": VERSION, "shard_videos": SHARD_VIDEOS, **settings}
        self.shards = [
            Shard(
                f"shard-{digest(self.settings, names)}", names,
                digest([source.state(name) for name in names]),
            )
            for names in grouped(source.names, self.settings["shard_videos"])
        ]  # fmt: skip
        self._records: dict[str, Record] = {}

    def is_current(self, index: Index) -> bool:
        """Whether an index describes these shards, and their files are complete."""
        listed = index.about["shards"]
        if [(id, states) for *_, id, states in listed] != [(s.id, s.states) for s in self.shards]:
            return False
        sizes = self.folder.sizes()
        return all(sizes.get(file) == size for file, size, *_ in listed)

    def run(self, part: Part, pool: Pool, progress: Progress) -> int:
        """Build the missing shards of a part, together with other processes.

        Returns the number of clips left to other parts; if it is 0, writes the index. Raises
        :class:`UserError` if the folder contains other files or cannot be written, or the disk is
        full.
        """
        with storage_errors(self.folder):
            self._claim()
            total, waits = len(self.source.names), False
            mine = {
                shard.id for at, shard in enumerate(self.shards)
                if at * part.total // len(self.shards) == part.number
            }  # fmt: skip
            while True:
                missing = self._missing()
                left = sum(len(shard.names) for shard in missing)
                progress(total - left, total)
                todo = [shard for shard in missing if shard.id in mine]
                if not todo:
                    break
                if waits:
                    log.info("%s: waiting for shards that other processes build", self.folder)
                    time.sleep(WAIT_SECONDS)
                else:
                    log.info(f"{self.verb} {left} of {total} videos into {self.folder}")
                waits = True
                tasks = (
                    Task(shard, self.folder, self.source.only(shard.names), self.settings,
                         self.append)
                    for shard in todo
                )  # fmt: skip
                for count in pool.run(build_shard, tasks, refuse):
                    left -= count
                    waits = waits and not count
                    progress(total - left, total)
            if not left:
                self._finish()
        return left

    def _claim(self) -> None:
        """Create the folder; raises :class:`UserError` if it contains other files."""
        self.folder.create()
        names = self.folder.sizes().keys()
        if names and INDEX not in names and not any(map(SHARD_FILE.match, names)):
            raise UserError(f"{self.folder}: expected an empty folder or a store, got other files")

    def _missing(self) -> list[Shard]:
        """Read new records, and return the shards that are still to build."""
        sizes = self.folder.sizes()
        missing = [shard for shard in self.shards if shard.id not in self._records]
        found = read_records(self.folder, [s for s in missing if f"{s.id}.json" in sizes])
        for shard in missing:
            record = found.get(shard.id)
            if record and shard.is_current(record, sizes.get(record["file"])):
                self._records[shard.id] = record
        return [shard for shard in missing if shard.id not in self._records]

    def _finish(self) -> None:
        """Write the index, and delete the files of shards that it does not list."""
        records = [self._records[shard.id] for shard in self.shards]
        clips = [(at, *clip) for at, record in enumerate(records) for clip in record["clips"]]
        numbers, names, starts, frames, facts = zip(*clips, strict=True) if clips else [()] * 5
        columns: Columns = {
            "shard": np.array(numbers, np.int32),
            "start": np.array(starts, np.int64),
            "frames": np.array(frames, np.int32),
        }
        bad = {name: why for record in records for name, why in record["bad_files"].items()}
        bad = dict(sorted(bad.items()))
        files = [
            (record["file"], record["bytes"], record["sha256"], *shard[::2])
            for shard, record in zip(self.shards, records, strict=True)
        ]
        about = {"settings": self.settings, "shards": files, "bad_files": bad}
        self.folder.write(BAD_FILES, to_json(bad))
        self.folder.write(INDEX, Index.make(names, columns, about, facts).to_bytes())
        kept = {f"{shard.id}.json" for shard in self.shards} | {file for file, *_ in files}
        shard_files = set(filter(SHARD_FILE.match, self.folder.sizes()))
        self.folder.delete(sorted(shard_files - kept))


def grouped(names: Sequence[str], largest: int) -> Iterator[list[str]]:
    """Divide clips, in order, into shards; ``largest``: their largest average number of clips.

    The name of a clip decides whether it begins a shard, so adding or removing clips changes only
    their shards, unless the number of clips doubles.
    """
    size = 1 << (max(1, min(largest, len(names) // SHARDS)).bit_length() - 1)
    group: list[str] = []
    for name in names:
        begins = zlib.crc32(name.encode(errors="surrogateescape")) % size == 0
        if group and (begins or len(group) == 4 * size):
            yield group
            group = []
        group.append(name)
    yield group


Kind = TypeVar("Kind", bound=Index)


def read_index(folder: Path, kind: type[Kind] = Index) -> Kind:  # type: ignore[assignment]
    """Read an index; raises :class:`UserError` if it is missing, damaged or of another version."""
    file = Path(folder) / INDEX
    try:
        index = kind.read(file)
        version = index.about["settings"]["version"]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: is not a frame store, or its build is not finished") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: damaged: {error}; delete this file, and the command that built the store "
            "writes it again"
        ) from None
    if version != VERSION:
        reason = "was written by another version of ivcl_fast; delete it and prepare it again"
        raise UserError(f"{folder}: {reason}")
    return index


def check_clips(folder: str | Path, index: Index, source: Source) -> None:
    """Raise :class:`UserError` if most of the clips of a store no longer exist."""
    known = set(source.names)
    gone = sum(name not in known or source.state(name) == GONE for name in index.names)
    if gone > len(index) / 2:
        raise UserError(
            f"{folder}: contains a store of other videos ({gone} of its {len(index)} are missing); "
            f"choose another folder, or train without the videos: --data store:{folder}"
        )


@contextmanager
def storage_errors(out: Folder) -> Iterator[None]:
    """Turn errors of the file system into :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"{out}: cannot be written: {error.strerror}") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{out}: {error.strerror}; free some space, and run the same command to continue"
            ) from None
        raise
