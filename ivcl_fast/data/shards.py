"""Shards: files of bounded size in which a store keeps its frames, each built by one worker.

Which video goes into which shard, and in which order, depends on the videos alone, so the bytes
are the same whatever the number of workers and however often the build was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..files import atomic_write, write_json
from .decode import make_decoder
from .index import VideoError
from .patches import patchify
from .workers import Report


@dataclass(frozen=True)
class ShardTask:
    """What one worker needs to build one shard."""

    path: Path
    videos: tuple[Path, ...]
    expected_frames: tuple[int, ...]
    """Per video, what its header says."""
    image_size: int
    patch_size: int
    decoder: Literal["dali", "pyav"]


@dataclass(frozen=True)
class Shard:
    """What a finished shard holds."""

    file: str
    bytes: int
    sha256: str
    frames: dict[str, int]
    """Frames per video, in the order in which they lie in the file."""
    bad_files: dict[str, str]
    """Videos left out, with the reason."""


def assign_videos(
    frames: Mapping[Path, int], frame_bytes: int, shard_bytes: int
) -> list[list[Path]]:
    """Cut the videos, in order, into groups of at most ``shard_bytes`` (or of one video)."""
    groups: list[list[Path]] = []
    free = 0
    for video, count in frames.items():
        size = count * frame_bytes
        if not groups or size > free:
            groups.append([])
            free = shard_bytes
        groups[-1].append(video)
        free -= size
    return groups


def finished_shard(task: ShardTask) -> Shard | None:
    """The shard, if an earlier build finished it."""
    try:
        shard = Shard(**json.loads(_record(task.path).read_text()))
        return shard if task.path.stat().st_size == shard.bytes else None
    except FileNotFoundError:
        return None


def build_shard(task: ShardTask, report: Report) -> Shard:
    """Decode the task's videos into its shard; ``report`` is told of frames dealt with.

    The record beside the shard is written last: with it the shard is finished.
    """
    decoder = make_decoder(task.decoder, task.image_size)
    frames: dict[str, int] = {}
    bad_files: dict[str, str] = {}
    digest = hashlib.sha256()
    with atomic_write(task.path) as file:
        for video, expected in zip(task.videos, task.expected_frames, strict=True):
            try:
                rows = patchify(decoder.decode(video), task.patch_size)
            except VideoError as error:
                bad_files[video.stem] = str(error)
            else:
                frames[video.stem] = len(rows)
                digest.update(rows.data)
                file.write(rows.data)
            report(expected)
        size = file.tell()
    shard = Shard(task.path.name, size, digest.hexdigest(), frames, bad_files)
    write_json(_record(task.path), asdict(shard))
    return shard


def shard_records(store: Path) -> Iterator[Path]:
    """The records of finished shards; of no use once the store's index holds what they say."""
    return store.glob("shard-*.json")


def _record(shard: Path) -> Path:
    return shard.with_suffix(".json")
