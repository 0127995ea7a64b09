"""Shards: the files with the frames of a store, of limited size, each with a record beside it.

``shard-<id>.u8`` holds uint8 ``[frames, N, 3PP]``. ``shard-<id>.json``, written when the shard is
complete, lists its clips in order, with the checksum of each one's frames, and the clips that
cannot be used. So every shard describes itself, and what is in no shard is missing. Which clips
share a shard depends on the data set alone, so the bytes are the same for any number of processes
and interruptions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.store.source import Source, State, VideoSource
from ivcl_fast.data.store.table import Columns, Index
from ivcl_fast.data.workers import STALL_SECONDS, time_limit
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write, locked, read_bytes, remove_temporaries, write_text
from ivcl_fast.models.reference import patchify

log = logging.getLogger(__name__)

VERSION = 3
SHARD_BYTES = 2**30
"""A shard ends with the clip that reaches this size."""
SHARD_CLIPS = 256
"""Most clips, on average, that are planned for a shard."""
SHARDS = 64
"""Number of shards, on average, that a data set with fewer clips is divided into."""
MIN_RATE = 2**20
"""Bytes per second; slower storage is considered hung."""


class StoredClip(NamedTuple):
    """A clip in a shard."""

    frames: int
    sha256: str
    """Checksum of its frames."""
    state: State
    """State of what it was made from."""


@dataclass(frozen=True)
class Shard:
    """Content of a complete shard, as its record tells."""

    settings: dict[str, Any]
    """Those of the store: version, sizes, crop and decoder."""
    clips: dict[str, StoredClip]
    """In the order of the file."""
    bad_files: dict[str, tuple[str, State]]
    """Clips that cannot be used: the reason, and the state of the files."""

    def states(self) -> dict[str, State]:
        """Return the states of what all clips were made from, the bad ones included."""
        bad = {name: state for name, (_, state) in self.bad_files.items()}
        return {name: clip.state for name, clip in self.clips.items()} | bad

    def size(self) -> int:
        """Return the length of the shard's file in bytes."""
        frames = sum(clip.frames for clip in self.clips.values())
        return frames * 3 * self.settings["image_size"] ** 2


@dataclass(frozen=True)
class ShardTask:
    """Clips of which a worker makes a shard, or several if they are large."""

    folder: Path
    source: Source
    settings: dict[str, Any]
    shard_bytes: int = SHARD_BYTES
    refused: dict[str, str] = field(default_factory=dict)
    """Clips that are not decoded, with the reason."""
    losses: tuple[str, ...] = ()
    """Clips at which a worker was lost."""

    @property
    def marker(self) -> Path:
        """File that names the clip that is being decoded."""
        return self.folder / f"{shard_name(self.source)}.now"


def shard_name(source: Source) -> str:
    """Name the shard that begins with the first clip of a source, by the clips and their states."""
    content = [(name, *source.state(name)) for name in source.names]
    return f"shard-{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}"


def grouped(new: Iterable[str], missing: Set[str], total: int) -> Iterator[list[str]]:
    """Divide the missing ones of new clips, in order, into tasks; ``total``: clips of the store.

    A task begins at clips that are chosen by their name. So a build that continues has the same
    tasks, without what is in a shard by now.
    """
    size = max(1, min(SHARD_CLIPS, total // SHARDS))
    group: list[str] = []
    for name in new:
        if group and zlib.crc32(name.encode(errors="surrogateescape")) % size == 0:
            yield group
            group = []
        if name in missing:
            group.append(name)
    if group:
        yield group


def read_shard(record: Path) -> Shard | None:
    """Read the record of a shard; None if it is damaged, or its file is not complete.

    Raises :class:`UserError` if another version wrote it.
    """
    try:
        found = json.loads(read_bytes(record))
        if found.get("settings", {}).get("version") != VERSION:
            raise older_version(record.parent)
        clips = {
            name: StoredClip(n, sha, State(*at)) for name, (n, sha, at) in found["clips"].items()
        }
        bad = {name: (why, State(*at)) for name, (why, at) in found["bad_files"].items()}
        shard = Shard(found["settings"], clips, bad)
        if record.with_suffix(".u8").stat().st_size == shard.size():
            return shard
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    log.warning("%s: damaged, so its shard is built again", record)
    return None


def older_version(store: Path) -> UserError:
    """Return the error for a store of another version."""
    return UserError(
        f"{store}: was written by another version of ivcl_fast; delete it and prepare it again"
    )


def build_shards(task: ShardTask) -> int:
    """Decode the clips of a task into shards; return their number, less those of other processes.

    Every shard has a lock of its own: the rest of a task that fills several shards is a task of its
    own for a process that finds the first one complete.
    """
    done, names = 0, task.source.names
    while done < len(names):
        left = task.source.only(names[done:])
        with locked(task.folder / f"{shard_name(left)}.lock", wait=False) as held:
            if not held:
                break
            remove_temporaries(task.folder, [shard_name(left)])
            done += _build_shard(task, left)
    if done:
        task.marker.unlink(missing_ok=True)
    return done


def _build_shard(task: ShardTask, source: Source) -> int:
    """Build one shard from the first clips of a source, and return the number of clips."""
    path = task.folder / f"{shard_name(source)}.u8"
    if (built := read_shard(path.with_suffix(".json"))) is not None:  # meanwhile
        return len(built.clips) + len(built.bad_files)
    clips = dict[str, StoredClip]()
    bad_files = dict[str, tuple[str, State]]()
    with atomic_write(path) as file:
        size = 0
        for name in source.names:
            state = source.state(name)
            task.marker.write_text(name, errors="surrogateescape")
            try:
                if reason := task.refused.get(name):
                    raise VideoError(reason)
                frames, sha256 = _append(file, size, source, name, task.settings)
                clips[name], size = StoredClip(frames, sha256, state), file.tell()
            except VideoError as error:
                bad_files[name] = str(error), state
            if size >= task.shard_bytes:
                break
        file.truncate(size)
    record = {"settings": task.settings, "clips": clips, "bad_files": bad_files}
    write_text(path.with_suffix(".json"), json.dumps(record) + "\n")
    return len(clips) + len(bad_files)


def _append(
    file: BinaryIO, start: int, source: Source, name: str, settings: Mapping[str, Any]
) -> tuple[int, str]:
    """Write the frames of a clip from ``start`` on; returns their number and checksum."""

    file.seek(start)
    file.truncate()
    count, digest = 0, hashlib.sha256()
    with time_limit(STALL_SECONDS + source_bytes(source, name) / MIN_RATE) as restart:
        for part in source.frames(name, settings["image_size"]):
            rows = patchify(part.cpu(), settings["patch_size"]).contiguous().numpy()
            count += len(rows)
            digest.update(rows.data)
            file.write(rows.data)
            restart()
    return count, digest.hexdigest()


def source_bytes(source: Source, name: str) -> int:
    """Return the size of a clip's files, which a worker has to read first."""
    if not isinstance(source, VideoSource):
        return 0
    return sum(path.stat().st_size for path in source.media[name].files if path.is_file())


def refuse_lost(task: ShardTask, reason: str) -> ShardTask:
    """Return the task to do after its worker was lost; the second time, its clip is refused."""
    try:
        name = task.marker.read_text(errors="surrogateescape")
    except OSError:
        raise RuntimeError(f"a worker process was lost: {reason}") from None
    log.warning("%s: decoding it failed: %s", name, reason)
    if name not in task.losses:
        return replace(task, losses=(*task.losses, name))
    refusal = f"decoding it failed twice: {reason}; touch the file to try again"
    return replace(task, refused=task.refused | {name: refusal})


def make_index(names: Sequence[str], shards: dict[Path, Shard], settings: dict[str, Any]) -> Index:
    """Make the index of a store from its shards."""
    rows: dict[str, tuple[int, ...]] = {}
    digests: dict[str, str] = {}
    for number, shard in enumerate(shards.values()):
        first = 0
        for name, clip in shard.clips.items():
            rows[name] = (number, first, clip.frames, *clip.state)
            digests[name] = clip.sha256
            first += clip.frames
    names = [name for name in names if name in rows]
    values = np.array([rows[name] for name in names], np.int64).reshape(-1, 5)
    columns: Columns = {
        "shard": values[:, 0].astype(np.int32),
        "first": values[:, 1],
        "frames": values[:, 2].astype(np.int32),
        "state": values[:, 3:],
        "sha256": np.frombuffer(bytes.fromhex("".join(digests[n] for n in names)), np.uint8),
    }
    files = [(record.with_suffix(".u8").name, shard.size()) for record, shard in shards.items()]
    bad = {name: (why, *at) for s in shards.values() for name, (why, at) in s.bad_files.items()}
    about = {"settings": settings, "shards": files, "bad_files": dict(sorted(bad.items()))}
    return Index.make(names, columns, about)
