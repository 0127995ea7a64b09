"""Shards: the parts of a store or of an index, which any number of processes build together.

``shard-<id>.u8`` holds the data of some clips; ``shard-<id>.json``, written last, lists them in
order, the unusable ones, and the checksum. The id is a digest of the settings, and of the names and
the state of the clips. So an existing shard is always up to date, and changed clips change only
their shards.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.store.source import GONE, Source
from ivcl_fast.data.store.table import Columns, Index
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write, locked, read_bytes, remove_temporaries, write_json

log = logging.getLogger(__name__)

VERSION = 4
INDEX, BAD_FILES, LOCK = "index.safetensors", "bad_files.json", "build.lock"
SHARD_FILES = f"shard-{'[0-9a-f]' * 16}-{'[0-9a-f]' * 16}"
SHARD_CLIPS = 64
"""Largest average number of clips in a shard."""
SHARDS = 64
"""Smallest average number of shards of a data set with more clips than this."""
MOVED = 10
"""Smallest number of shards to accept with changed file times, as after copying the files."""
WAIT_SECONDS = 1.0
"""Seconds between two checks of the shards that other processes build."""

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
    """A shard, built or still to build."""

    path: Path
    """The data file."""
    names: list[str]
    """Names of the clips."""

    def read(self) -> dict[str, Any] | None:
        """Read the record; None unless the shard is complete."""
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            record = json.loads(read_bytes(self.path.with_suffix(".json")))
            if self.path.stat().st_size == record["bytes"]:
                return record
        return None


@dataclass(frozen=True)
class Task:
    """A shard to build in a worker process."""

    shard: Shard
    source: Source
    """The clips of the shard."""
    settings: dict[str, Any]
    append: Append
    refused: dict[str, str] = field(default_factory=dict)
    """Clips that crashed a decoder, with the reason."""

    @property
    def marker(self) -> Path:
        """File that names the clip that is being decoded."""
        return self.shard.path.with_suffix(".now")


def build_shard(task: Task) -> int:
    """Build a shard; return its number of clips, 0 if another process builds or has built it."""
    path, names = task.shard
    with locked(path.with_suffix(".lock"), wait=False) as held:
        if not held or task.shard.read() is not None:
            return 0
        remove_temporaries(path.parent, [path.stem])
        clips, bad_files = list[tuple[str, int, int, str]](), dict[str, str]()
        with atomic_write(path) as file:
            for name in names:
                start = file.tell()
                task.marker.write_text(name, errors="surrogateescape")
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
        record = {"clips": clips, "bad_files": bad_files, "bytes": size, "sha256": sha256}
        write_json(path.with_suffix(".json"), record)
        task.marker.unlink(missing_ok=True)
    return len(names)


def checksum(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse(task: Task, reason: str) -> Task:
    """Return the shard to build after a clip has crashed its worker."""
    try:
        name = task.marker.read_text(errors="surrogateescape")
    except FileNotFoundError:
        raise UserError(f"a worker process was lost: {reason}") from None
    reason = f"decoding failed: {reason}; touch the file to try again"
    log.warning("%s: %s", name, reason)
    return replace(task, refused=task.refused | {name: reason})


class Build:
    """The build of a store or an index: its shards, and the index over them."""

    def __init__(
        self,
        source: Source,
        out: Path,
        settings: dict[str, Any],
        append: Append,
        verb: str = "decoding",
    ) -> None:
        """Divide the clips into shards; ``verb``: for the log.

        Raises :class:`UserError` if there are no clips, or two with the same name.
        """
        if not source.names:
            raise UserError("the data set has no videos")
        name, count = Counter(source.names).most_common(1)[0]
        if count > 1:
            raise UserError(f"{count} videos have the name {name}")
        self.source, self.out, self.append, self.verb = source, out, append, verb
        self.settings = {"version": VERSION, **settings}
        self.shards = [
            Shard(out / f"{shard_id(source, names, self.settings)}.u8", names)
            for names in grouped(source.names)
        ]
        self._accept_copies()
        self._records: dict[str, dict[str, Any]] = {}

    def _accept_copies(self) -> None:
        """Use existing shards if most files differ only in their times: they were copied."""
        there = {path.stem for path in self.out.glob(f"{SHARD_FILES}.json")}
        of_sizes = {name.rpartition("-")[0]: name for name in sorted(there)}
        copied = [
            shard._replace(path=self.out / f"{of_sizes[same]}.u8")
            if (same := shard.path.stem.rpartition("-")[0]) in of_sizes else shard
            for shard in self.shards
        ]  # fmt: skip
        others = sum(new != old for new, old in zip(copied, self.shards, strict=True))
        if others >= MOVED and 2 * others > len(copied):
            self.shards = copied

    def is_current(self, index: Index) -> bool:
        """Whether an index describes these shards, and their files are complete."""
        files = index.about["shards"]
        if [name for name, *_ in files] != [shard.path.name for shard in self.shards]:
            return False
        with suppress(FileNotFoundError):
            return all((self.out / name).stat().st_size == size for name, size, _ in files)
        return False

    def run(self, part: Part, workers: int, progress: Progress) -> int:
        """Build the missing shards of a part, together with other processes.

        Returns the number of clips left to other parts; if it is 0, writes the index. Raises
        :class:`UserError` if the folder contains other files or cannot be written, or the disk is
        full.
        """
        with storage_errors(self.out):
            self._claim()
            total, waits = len(self.source.names), False
            mine = [
                shard for at, shard in enumerate(self.shards)
                if at * part.total // len(self.shards) == part.number
            ]  # fmt: skip
            with WorkerPool(workers) as pool:
                while missing := self._missing(mine):
                    done = total - self._clips(self._missing(self.shards))
                    progress(done, total)
                    if waits:
                        log.info("%s: waiting for shards that other processes build", self.out)
                        time.sleep(WAIT_SECONDS)
                    else:
                        what = total - done, total, self.out
                        log.info(f"{self.verb} %d of %d videos into %s", *what)
                    waits = True
                    tasks = (
                        Task(shard, self.source.only(shard.names), self.settings, self.append)
                        for shard in missing
                    )
                    for count in pool.run(build_shard, tasks, refuse):
                        done += count
                        waits = waits and not count
                        progress(done, total)
            left = self._clips(self._missing(self.shards))
            if not left:
                self._finish()
            progress(total - left, total)
        return left

    def _claim(self) -> None:
        """Create the folder; raises :class:`UserError` if it contains other files."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: expected a folder, got a file")
        self.out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in self.out.iterdir() if path.suffix != ".tmp"}
        if names and not names & {INDEX, LOCK}:
            raise UserError(f"{self.out}: expected an empty folder or a store, got other files")
        (self.out / LOCK).touch()

    def _missing(self, shards: Sequence[Shard]) -> list[Shard]:
        missing = []
        for shard in shards:
            name = shard.path.name
            if name not in self._records and (record := shard.read()) is not None:
                self._records[name] = record
            if name not in self._records:
                missing.append(shard)
        return missing

    @staticmethod
    def _clips(shards: Sequence[Shard]) -> int:
        return sum(len(shard.names) for shard in shards)

    def _finish(self) -> None:
        """Write the index, and delete files that it does not list."""
        with locked(self.out / LOCK):
            index = self._index()
            write_json(self.out / BAD_FILES, index.bad_files)
            index.write(self.out / INDEX)
            remove_temporaries(self.out, ["*"])
            kept = {shard.path.stem for shard in self.shards}
            for path in self.out.glob(f"{SHARD_FILES}.*"):
                if path.stem not in kept or path.suffix not in (".json", ".u8"):
                    path.unlink(missing_ok=True)
            (self.out / LOCK).unlink(missing_ok=True)

    def _index(self) -> Index:
        """Make the index from the records of the shards."""
        records = [self._records[shard.path.name] for shard in self.shards]
        clips = [(at, *clip) for at, record in enumerate(records) for clip in record["clips"]]
        numbers, names, starts, frames, facts = zip(*clips, strict=True) if clips else [()] * 5
        columns: Columns = {
            "shard": np.array(numbers, np.int32),
            "start": np.array(starts, np.int64),
            "frames": np.array(frames, np.int32),
        }
        bad = {name: why for record in records for name, why in record["bad_files"].items()}
        files = [
            (shard.path.name, record["bytes"], record["sha256"])
            for shard, record in zip(self.shards, records, strict=True)
        ]
        about = {"settings": self.settings, "shards": files, "bad_files": dict(sorted(bad.items()))}
        return Index.make(names, columns, about, facts)


def grouped(names: Sequence[str]) -> Iterator[list[str]]:
    """Divide clips, in order, into shards.

    The name of a clip decides whether it begins a shard, so adding or removing clips changes only
    their shards, unless the number of clips doubles.
    """
    size = 1 << (max(1, min(SHARD_CLIPS, len(names) // SHARDS)).bit_length() - 1)
    group: list[str] = []
    for name in names:
        begins = zlib.crc32(name.encode(errors="surrogateescape")) % size == 0
        if group and (begins or len(group) == 4 * size):
            yield group
            group = []
        group.append(name)
    yield group


def shard_id(source: Source, names: Sequence[str], settings: dict[str, Any]) -> str:
    """Name a shard by its clips: a digest of names, sizes and settings, and one of times."""
    states = [source.state(name) for name in names]
    content = repr((settings, [*names], [state.size for state in states]))
    times = repr([state.time for state in states])
    digests = (hashlib.sha256(text.encode()).hexdigest() for text in (content, times))
    return "-".join(["shard", *(digest[:16] for digest in digests)])


def read_index(folder: Path) -> Index:
    """Read an index; raises :class:`UserError` if it is missing, damaged or of another version."""
    file = Path(folder) / INDEX
    try:
        index = Index.read(file)
        if index.about["settings"]["version"] == VERSION:
            return index
        reason = "was written by another version of ivcl_fast; delete it and prepare it again"
        raise UserError(f"{folder}: {reason}")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: is not a frame store, or its build is not finished") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: damaged: {error}; delete this file, and the command that built the store "
            "writes it again"
        ) from None


def check_clips(folder: Path, index: Index, source: Source) -> None:
    """Raise :class:`UserError` if most of the clips of a store no longer exist."""
    known = set(source.names)
    gone = sum(name not in known or source.state(name) == GONE for name in index.names)
    if gone > len(index) / 2:
        raise UserError(
            f"{folder}: contains a store of other videos ({gone} of its {len(index)} are missing); "
            "delete it or choose another folder"
        )


@contextmanager
def storage_errors(out: Path) -> Iterator[None]:
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
