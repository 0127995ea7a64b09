"""Shards: files of bounded size in which a store keeps its frames, each built by one worker.

Which media go into which shard, and in which order, depends on the media alone, so the bytes are
the same whatever the number of processes and however often the build was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import ChosenDecoder, make_decoder
from ivcl_fast.data.workers import Report
from ivcl_fast.files import atomic_write, locked, write_json
from ivcl_fast.models.reference import patchify

META = "meta.json"
"""A folder that holds it is a finished store."""


@dataclass(frozen=True)
class ShardTask:
    """What one worker needs to build one shard."""

    path: Path
    media: tuple[Media, ...]
    expected_frames: tuple[int, ...]
    """Per media, what its headers say."""
    decoders: tuple[ChosenDecoder, ...]
    image_size: int
    patch_size: int
    refused: dict[str, str] = field(default_factory=dict)
    """Media not to be touched, with the reason."""


@dataclass(frozen=True)
class Shard:
    """What a finished shard holds."""

    file: str
    bytes: int
    sha256: str
    frames: dict[str, int]
    """Frames per media, in the order in which they lie in the file."""
    bad_files: dict[str, str]
    """Media left out, with the reason."""


def assign_media(frames: Mapping[str, int], frame_bytes: int, shard_bytes: int) -> list[list[str]]:
    """Cut the media, in order, into groups of at most ``shard_bytes`` (or of one)."""
    groups: list[list[str]] = []
    free = 0
    for name, count in frames.items():
        size = count * frame_bytes
        if not groups or size > free:
            groups.append([])
            free = shard_bytes
        groups[-1].append(name)
        free -= size
    return groups


def finished_shard(path: Path) -> Shard | None:
    """The shard of that name, if it was finished."""
    try:
        shard = Shard(**json.loads(_record(path).read_text()))
        return shard if path.stat().st_size == shard.bytes else None
    except FileNotFoundError:
        return None


def build_shard(task: ShardTask, report: Report) -> None:
    """Decode the task's media into its shard; ``report`` is told of frames dealt with, after each.

    The record beside the shard is written last: with it the shard is finished. Does nothing if
    another process has the shard in hand or has finished it.
    """
    lock = task.path.with_suffix(".lock")
    with locked(lock, wait=False) as mine:
        if not mine or finished_shard(task.path):
            return
        if task.path.with_name(META).exists():  # looked for last: the records go after it came
            lock.unlink()
            return
        for leftover in task.path.parent.glob(f"{task.path.stem}.*.tmp"):
            leftover.unlink()
        _build(task, report)


def _build(task: ShardTask, report: Report) -> None:
    frames: dict[str, int] = {}
    bad_files: dict[str, str] = {}
    digest = hashlib.sha256()
    items: Sequence[tuple[Media, int, ChosenDecoder]] = list(
        zip(task.media, task.expected_frames, task.decoders, strict=True)
    )
    with atomic_write(task.path) as file:
        for media, expected, decoder in items:
            try:
                if media.name in task.refused:
                    raise VideoError(task.refused[media.name])
                decoded = make_decoder(decoder, task.image_size).decode(media)
            except VideoError as error:
                bad_files[media.name] = str(error)
            else:
                rows = patchify(decoded.cpu(), task.patch_size).contiguous().numpy()
                frames[media.name] = len(rows)
                digest.update(rows.data)
                file.write(rows.data)
            report(expected)
        size = file.tell()
    shard = Shard(task.path.name, size, digest.hexdigest(), frames, bad_files)
    write_json(_record(task.path), asdict(shard))


def shard_leftovers(store: Path) -> Iterator[Path]:
    """Records and locks of shards; of no use once the store's index holds what they say."""
    yield from store.glob("shard-*.json")
    yield from store.glob("shard-*.lock")


def _record(shard: Path) -> Path:
    return shard.with_suffix(".json")
