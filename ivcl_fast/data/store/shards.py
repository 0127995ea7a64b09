"""Shards: the parts of a frame store or an index, which several processes can build together.

``shard-<id>.u8`` holds the data of some clips, and ``shard-<id>.json`` describes them. ``<id>`` is
a digest of the settings, the names of the clips, and the states of their files, so a shard that
exists is up to date. The index is written last, and lists the shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import (
    DecoderName,
    make_decoder,
    open_media,
    resolve_decoder,
)
from ivcl_fast.data.decode.media import Square
from ivcl_fast.data.store.table import INDEX, VERSION, Columns, Index, encoded, table_bytes
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write, locked, sha256, write_json

log = logging.getLogger(__name__)

BAD_FILES = "bad_files.json"
SHARD_FILE = re.compile("shard-[0-9a-f]{16}[.]")
SHARD_VIDEOS = 256
"""Largest average number of clips in a shard: 1 GB of CATER at 64 pixels."""
SHARDS = 64
"""Smallest average number of shards of a data set with more clips than this."""
WAIT_SECONDS = 1.0
"""Seconds between two checks of the shards that other processes build."""

GONE = ""
"""State of media of which a file is missing."""
Record = dict[str, Any]
Progress = Callable[[int, int], None]
Append = Callable[["Source", str, dict[str, Any], BinaryIO], tuple[int, str]]
"""Appends the data of a clip to its shard; returns its number of frames, and other metadata.

Called with the source, the name of the clip, the settings and the file, in a worker process.
Raises :class:`VideoError` if the clip cannot be used.
"""


class Part(NamedTuple):
    """Part ``number`` of ``total`` of the shards, from 0."""

    number: int
    total: int


@dataclass(frozen=True)
class Task:
    """A shard to build in a worker process."""

    path: Path
    """The files of the shard, without their suffix."""
    source: Source
    """The clips of the shard."""
    settings: dict[str, Any]
    append: Append

    def __str__(self) -> str:
        return f"videos {self.source.names[0]} to {self.source.names[-1]}"


def build_shard(task: Task) -> int:
    """Build a shard; return its number of clips, 0 if another process builds or has built it."""
    with locked(task.path.with_suffix(".lock"), wait=False) as held:
        if not held or read_record(task.path):
            return 0
        clips, bad_files = list[tuple[str, int, str]](), dict[str, str]()
        with atomic_write(task.path.with_suffix(".u8")) as file:
            for name in task.source.names:
                start = file.tell()
                try:
                    clips.append((name, *task.append(task.source, name, task.settings, file)))
                except VideoError as error:
                    bad_files[name] = str(error)
                    file.seek(start)
                    file.truncate()
            size = file.tell()
            file.flush()
            checksum = sha256(Path(file.name))
        record = {"bytes": size, "sha256": checksum, "clips": clips, "bad_files": bad_files}
        write_json(task.path.with_suffix(".json"), record)
    return len(task.source.names)


def read_record(path: Path) -> Record | None:
    """Return the description of a shard, or None if its file is missing or incomplete.

    ``path``: without a suffix.
    """
    try:
        record: Record = json.loads(path.with_suffix(".json").read_bytes())
        return record if path.with_suffix(".u8").stat().st_size == record["bytes"] else None
    except (FileNotFoundError, ValueError):
        return None


class Build:
    """The build of a store or an index: its shards, and the index over them."""

    def __init__(self, source: Source, out: Path, settings: dict[str, Any], append: Append) -> None:
        """Divide the clips into shards.

        Raises :class:`UserError` if there are no clips, or two with the same name.
        """
        if not source.names:
            raise UserError("the data set has no videos")
        name, count = Counter(source.names).most_common(1)[0]
        if count > 1:
            raise UserError(f"{count} videos have the name {name}")
        self.source, self.out, self.append = source, out, append
        self.settings = {"version": VERSION, **settings}
        self.shards = dict[str, list[str]]()
        """The names of the clips of each shard."""
        for names in grouped(source.names):
            content = repr((self.settings, names, [source.state(name) for name in names]))
            digest = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]
            self.shards[f"shard-{digest}"] = names

    def is_current(self, index: Index) -> bool:
        """Whether an index describes these shards, and their files are complete."""
        sizes = {f"{shard}.u8": size for shard, size, _ in index.about["shards"]}
        with os.scandir(self.out) as entries:
            found = {one.name: one.stat().st_size for one in entries if one.name in sizes}
        return found == sizes and list(sizes) == [f"{shard}.u8" for shard in self.shards]

    def run(self, part: Part, pool: WorkerPool, progress: Progress) -> int:
        """Build the missing shards of a part, together with other processes.

        Returns the number of clips left to other parts; if it is 0, writes the index. Raises
        :class:`UserError` if the folder contains other files.
        """
        self._claim()
        total, waits = len(self.source.names), False
        count = len(self.shards)
        mine = {s for i, s in enumerate(self.shards) if i * part.total // count == part.number}
        while True:
            missing = [shard for shard in self.shards if not self._record(shard)]
            left = sum(len(self.shards[shard]) for shard in missing)
            progress(total - left, total)
            todo = [shard for shard in missing if shard in mine]
            if not todo:
                break
            if waits:
                log.info("%s: waiting for shards that other processes build", self.out)
                time.sleep(WAIT_SECONDS)
            else:
                log.info("building %s: %d of %d videos are missing", self.out, left, total)
            waits = True
            for done in pool.run(build_shard, map(self._task, todo)):
                left -= done
                waits = waits and not done
                progress(total - left, total)
        if not left:
            self._finish()
        return left

    def _claim(self) -> None:
        """Create the folder; raises :class:`UserError` if it contains other files."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: expected a folder, got a file")
        self.out.mkdir(parents=True, exist_ok=True)
        names = os.listdir(self.out)
        if names and INDEX not in names and not any(map(SHARD_FILE.match, names)):
            raise UserError(f"{self.out}: expected an empty folder or a store, got other files")

    def _task(self, shard: str) -> Task:
        source = self.source.only(self.shards[shard])
        return Task(self.out / shard, source, self.settings, self.append)

    def _record(self, shard: str) -> Record | None:
        return read_record(self.out / shard)

    def _finish(self) -> None:
        """Write the index, and delete the files of shards that it does not list."""
        records = [record for shard in self.shards if (record := self._record(shard))]
        clips = [clip for record in records for clip in record["clips"]]
        names, counts, facts = zip(*clips, strict=True) if clips else ((), (), ())
        frames = np.array(counts, np.int64)
        columns: Columns = {
            "name": encoded(names),
            "frames": frames,
            "first": np.cumsum(frames) - frames,
            "fps": np.array([json.loads(fact or "{}").get("fps", 0) for fact in facts], np.float64),
            "facts": encoded(facts),
        }
        order = np.argsort(columns["name"])
        columns = {name: column[order] for name, column in columns.items()}
        bad = {name: why for record in records for name, why in record["bad_files"].items()}
        bad = dict(sorted(bad.items()))
        files = [
            (shard, record["bytes"], record["sha256"])
            for shard, record in zip(self.shards, records, strict=True)
        ]
        write_json(self.out / BAD_FILES, bad)
        with atomic_write(self.out / INDEX) as file:
            about = {"settings": self.settings, "shards": files, "bad_files": bad}
            file.write(table_bytes(columns, about))
        kept = {f"{shard}{suffix}" for shard in self.shards for suffix in (".u8", ".json")}
        for name in os.listdir(self.out):
            if SHARD_FILE.match(name) and name not in kept:
                (self.out / name).unlink(missing_ok=True)


def grouped(names: Sequence[str]) -> Iterator[list[str]]:
    """Divide clips, in order, into shards.

    The name of a clip decides whether it begins a shard, so adding or removing clips changes only
    their shards, unless the number of clips doubles.
    """
    size = 1 << (max(1, min(SHARD_VIDEOS, len(names) // SHARDS)).bit_length() - 1)
    group: list[str] = []
    for name in names:
        begins = zlib.crc32(name.encode(errors="surrogateescape")) % size == 0
        if group and (begins or len(group) == 4 * size):
            yield group
            group = []
        group.append(name)
    yield group


# --- Sources of frames ----------------------------------------------------------------------------


class Source(Protocol):
    """Clips whose frames a store keeps; pickled to worker processes."""

    @property
    def decoder(self) -> str:
        """Name of the decoder, or ``drawn``; recorded in the store."""

    @property
    def crop(self) -> Square:
        """Part of the frames that is resized to the square; recorded in the store."""

    @property
    def names(self) -> Sequence[str]:
        """The clips, in order; unique."""

    def only(self, names: Sequence[str]) -> Source:
        """Return the source of some of the clips, in this order."""

    def state(self, name: str) -> str:
        """Return, quickly, a string that changes when the input of a clip may have changed."""

    def fps(self, name: str) -> float:
        """Return the frame rate of a clip, or 0; raises like :meth:`frames`."""

    def frames(self, name: str, image_size: int) -> Iterator[torch.Tensor]:
        """Yield all frames of a clip, some at a time: uint8 RGB ``[F, 3, S, S]``.

        Raises :class:`~ivcl_fast.data.dataset.VideoError` if the clip cannot be used.
        """


class VideoSource:
    """The videos and image sequences of a data set."""

    def __init__(
        self,
        media: Sequence[Media],
        decoder: DecoderName = "auto",
        crop: Square = "none",
        device: torch.device | None = None,
    ) -> None:
        """``crop``: part of the frames to resize to the square. ``device``: where DALI decodes."""
        self.media = {one.name: one for one in media}
        self.names = [one.name for one in media]
        self.crop: Square = crop
        self.device = device
        self.decoder = resolve_decoder(decoder)

    def only(self, names: Sequence[str]) -> VideoSource:
        media = [self.media[name] for name in names]
        return VideoSource(media, self.decoder, self.crop, self.device)

    def state(self, name: str) -> str:
        """Return the sizes and modification times of the files."""
        try:
            found = [path.stat() for path in self.media[name].files]
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return GONE
        return " ".join(f"{one.st_size} {one.st_mtime_ns}" for one in found)

    def fps(self, name: str) -> float:
        return open_media(self.media[name]).fps

    def frames(self, name: str, image_size: int) -> Iterator[torch.Tensor]:
        decoder = make_decoder(self.decoder, image_size, self.device)
        yield from decoder.parts(self.media[name], self.crop)


def squares(frames: np.ndarray, image_size: int) -> torch.Tensor:
    """Resize whole frames, uint8 RGB ``[F, H, W, 3]``, as the decoders do: ``[F, 3, S, S]``."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if pixels.shape[-2:] == (image_size, image_size):
        return pixels.contiguous()
    return torch.nn.functional.interpolate(
        pixels, (image_size, image_size), mode="bilinear", antialias=True
    )
