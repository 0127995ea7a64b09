"""Shards: the files with the frames of a store, of limited size, each built by one worker.

The media of each shard and their order depend only on the data set, so the bytes are the same for
any number of processes and interruptions.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ivcl_fast.data.crop import Square
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import ChosenDecoder, make_decoder
from ivcl_fast.data.store.sources import Source, source_of, state_of
from ivcl_fast.data.workers import Report
from ivcl_fast.files import atomic_write, locked, read_bytes, remove_temporaries, write_text
from ivcl_fast.manifest import check_signed, signed
from ivcl_fast.models.reference import patchify

log = logging.getLogger(__name__)

META = "meta.json"
"""File that marks a finished store."""


@dataclass(frozen=True)
class ShardTask:
    """The task of building a shard."""

    path: Path
    media: tuple[Media, ...]
    expected_frames: tuple[int, ...]
    """Number of frames of each of the media, by its headers."""
    decoders: tuple[ChosenDecoder, ...]
    image_size: int
    patch_size: int
    gpu: int | None = None
    """Index of the GPU that DALI decodes on."""
    square: Square = "none"
    """The part of the frames that the shard holds."""
    state: str = ""
    """The state of a store that contains the shard, see :func:`is_finished`; empty: any."""
    refused: dict[str, str] = field(default_factory=dict)
    """Media that are not opened, with the reason."""


@dataclass(frozen=True)
class Shard:
    """Content of a finished shard."""

    file: str
    bytes: int
    sha256: str
    frames: dict[str, int]
    """Number of frames of each of the media, in the order of the file."""
    bad_files: dict[str, str]
    """Media that were left out, with the reason."""
    sources: dict[str, Source] = field(default_factory=dict)
    """The files of all these media as they were read."""


def is_finished(store: Path, state: str) -> bool:
    """Whether a store is complete and was made from files in this state."""
    try:
        return state in ("", json.loads(read_bytes(store / META)).get("state"))
    except (OSError, ValueError, AttributeError):
        return False


def finished_shard(path: Path) -> Shard | None:
    """Return the shard at ``path``, or None if it is not finished."""
    try:
        text = read_bytes(_record(path))
        found = json.loads(text)
        if "file" not in found:
            found = check_signed(text)["shard"]  # otherwise of version 0.1.0
        sources = {name: Source(*of_media) for name, of_media in found.pop("sources", {}).items()}
        shard = Shard(**found, sources=sources)
        return shard if path.stat().st_size == shard.bytes else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        log.warning("%s: damaged, so its shard is built again", _record(path))
        return None


def build_shard(task: ShardTask, report: Report) -> None:
    """Decode the media of a task into its shard; reports the frames of each of the media.

    The record next to the shard is written last; it marks the shard as finished. Does nothing if
    another process builds the shard or has finished it.
    """
    lock = task.path.with_suffix(".lock")
    with locked(lock, wait=False) as held:
        if not held or finished_shard(task.path):
            return
        # This is checked last, because records are deleted after META is written.
        if is_finished(task.path.parent, task.state):
            lock.unlink(missing_ok=True)
            return
        remove_temporaries(task.path.parent, [task.path.stem])
        _build(task, report)


def _build(task: ShardTask, report: Report) -> None:
    frames: dict[str, int] = {}
    bad_files: dict[str, str] = {}
    sources: dict[str, Source] = {}
    digest, size = hashlib.sha256(), 0
    items = zip(task.media, task.expected_frames, task.decoders, strict=True)
    with atomic_write(task.path) as file:
        for media, expected, decoder in items:
            refused = task.refused.get(media.name)
            sources[media.name] = Source(state_of(media)) if refused else source_of(media)
            try:
                if refused:
                    raise VideoError(refused)
                parts = partial(
                    make_decoder(decoder, task.image_size, task.gpu).parts, media, task.square
                )
                frames[media.name], digest = _append(file, size, digest, parts, task.patch_size)
                size = file.tell()
            except VideoError as error:
                bad_files[media.name] = str(error)
            report(expected)
        file.truncate(size)
    shard = Shard(task.path.name, size, digest.hexdigest(), frames, bad_files, sources)
    write_text(_record(task.path), signed({"shard": asdict(shard)}))


def _append(
    file: BinaryIO,
    start: int,
    digest: hashlib._Hash,
    parts: Callable[[], Iterator[torch.Tensor]],
    patch_size: int,
) -> tuple[int, hashlib._Hash]:
    """Write the frames of media to a file, from ``start`` on.

    Returns their number, and the ``digest`` of the file with them.
    """
    file.seek(start)
    file.truncate()
    count, digest = 0, digest.copy()
    for part in parts():
        rows = patchify(part.cpu(), patch_size).contiguous().numpy()
        count += len(rows)
        digest.update(rows.data)
        file.write(rows.data)
    return count, digest


def shard_leftovers(store: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """List what a build leaves in a store that a finished store does not need, complete files."""
    shard = f"shard-{'[0-9]' * 5}"
    for pattern in (f"{shard}.json", f"{shard}.lock", f"{shard}.u8"):
        for path in store.glob(pattern):
            if path.name not in meta["files"]:  # else a shard that was not replaced
                yield path


def _record(shard: Path) -> Path:
    return shard.with_suffix(".json")
