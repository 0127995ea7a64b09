"""Builds a frame store with any number of processes; a build continues after kills and crashes.

What is in no complete shard is missing. Each process that needs the store builds missing shards,
each under a lock of its own, until none is missing; then one writes the index, which finishes the
store. The jobs of an array build a fixed part of the missing clips each.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ivcl_fast.data.bad_files import summary
from ivcl_fast.data.crop import Square
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import default_workers, resolve_decoder
from ivcl_fast.data.decode.interface import DecoderName, decoding_gpu
from ivcl_fast.data.store.frame_store import BAD_FILES, INDEX, FrameStore, read_index
from ivcl_fast.data.store.placement import Placement
from ivcl_fast.data.store.shards import (
    SHARD_BYTES,
    VERSION,
    Shard,
    ShardTask,
    build_shards,
    grouped,
    make_index,
    older_version,
    read_shard,
    refuse_lost,
)
from ivcl_fast.data.store.source import GONE, Source, State, VideoSource, unchanged
from ivcl_fast.data.store.table import Index
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, remove_temporaries, write_json

log = logging.getLogger(__name__)

LOCK = "build.lock"
WAIT_SECONDS = 1.0
"""Seconds between two checks of the shards that other processes build."""
SHARD_FILES = "shard-" + "[0-9a-f]" * 16

Progress = Callable[[int, int], None]


class Part(NamedTuple):
    """A part of the clips: the ``number``-th of ``total`` consecutive ones, from 0."""

    number: int
    total: int


def check_sizes(image_size: int, patch_size: int) -> None:
    """Raise :class:`UserError` unless patches of this size fill the frames of a store."""
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise UserError(f"image_size: {image_size} is not a multiple of patch_size {patch_size}")


def default_store_path(
    root: Path,
    image_size: int,
    patch_size: int,
    decoder: DecoderName = "auto",
    task: str | None = None,
    crop: Square = "none",
) -> Path:
    """Return the default folder of a data set's store; ``task``: if tasks have their own media."""
    parts = ["store", image_size, f"p{patch_size}", resolve_decoder(decoder)]
    parts += [] if crop == "none" else [crop]
    parts += [] if task is None else [task]
    return Path(root) / "-".join(map(str, parts))


def find_store(
    root: Path, media: Sequence[Media], sizes: tuple[int, int], decoder: DecoderName, **named: Any
) -> tuple[Path, DecoderName]:
    """Return the folder of a data set's store and the decoder to build or open it with.

    If ``auto`` is DALI, which has no store yet, a store of the same files that PyAV made, for
    example on a machine without a GPU, is used. ``named``: task and crop of
    :func:`default_store_path`.
    """
    out = default_store_path(root, *sizes, decoder, **named)
    other = default_store_path(root, *sizes, "pyav", **named)
    if decoder != "auto" or other == out or (out / INDEX).exists():
        return out, decoder
    with suppress(UserError):  # there is none, or it is damaged
        if _is_current(read_index(other), VideoSource(media, "pyav")):
            log.info("store: PyAV has made %s, which is used; --decoder dali makes another", other)
            return other, "pyav"
    return out, decoder


def build_store(
    source: Source | Sequence[Media],
    out: Path,
    image_size: int,
    patch_size: int,
    decoder: DecoderName = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
    placement: Placement = "disk",
    device: torch.device | None = None,
    crop: Square = "none",
    step_bytes: Callable[[], int] | None = None,
) -> FrameStore:
    """Decode every frame of videos into a store at ``out``, or open the store if it exists.

    Videos that cannot be used are left out, logged, and listed with the reason in
    ``bad_files.json``; so are videos whose decoder crashed or hung twice. An interrupted build
    continues. If videos were added, changed or removed, only the shards with such videos are
    replaced; a store that is open is not affected. Processes that need the same store (such as the
    ranks of torchrun, on one or several machines) build it together.

    Args:
        source: videos, or another :class:`~ivcl_fast.data.store.source.Source` of frames.
        out: folder of the store.
        image_size: height and width that frames are resized to; a multiple of ``patch_size``.
        decoder: ``auto``, ``dali`` or ``pyav``.
        workers: processes; default one per CPU, or per NVDEC. With 1 this process decodes, and
            ends if a decoder crashes. The bytes do not depend on it.
        progress: called with (videos done, videos in total) when shards are complete.
        shard_bytes: size at which a shard ends.
        crop: part of the frames to resize to the square; by default all of them.
        placement, device, step_bytes: see :class:`FrameStore`; DALI decodes on ``device`` if it
            is a GPU.

    Raises:
        UserError: ``out`` contains a store of other settings, a store more than half of whose
            videos are missing, or something else; cannot be written, or the disk is full.

    Example::

        >>> store = build_store(dataset.media(), Path("store"), image_size=64, patch_size=8)
        >>> store.rows(store.names[0], [0, 1]).shape
        (2, 64, 192)
    """
    build_part(
        Part(0, 1), source, out, image_size, patch_size, decoder, workers, progress, shard_bytes,
        device, crop,
    )  # fmt: skip
    store = FrameStore(out, placement, device, step_bytes)
    if store.bad_files:
        total = len(store.index) + len(store.bad_files)
        log.warning(summary(store.bad_files, total, Path(out) / BAD_FILES))
    return store


def build_part(
    part: Part,
    source: Source | Sequence[Media],
    out: Path,
    image_size: int,
    patch_size: int,
    decoder: DecoderName = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
    device: torch.device | None = None,
    crop: Square = "none",
) -> int:
    """Build a part of a store, without waiting for other parts; see :func:`build_store`.

    Parts may run at the same time on machines that share the folder. Returns the number of videos
    that other parts have to decode yet; 0 if the store is complete, which the last part does.
    """
    check_sizes(image_size, patch_size)
    if workers is not None and workers < 1:
        raise UserError(f"workers: expected at least 1, got {workers}")
    clips: Source = (
        VideoSource(source, decoder, crop, decoding_gpu(device))
        if isinstance(source, Sequence) else source
    )  # fmt: skip
    _check_names(clips)
    settings = {
        "version": VERSION, "image_size": image_size, "patch_size": patch_size, "crop": crop,
        "decoder": clips.decoder,
    }  # fmt: skip
    build = _Build(clips, Path(out), settings, shard_bytes)
    return build.run(part, workers, progress or (lambda *_: None))


def _check_names(source: Source) -> None:
    """Raise :class:`UserError` if there are no clips, or two with the same name."""
    if not source.names:
        raise UserError("the data set has no videos")
    name, count = Counter(source.names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} videos have the name {name}")


class _Build:
    """What exists of a store, and what is missing."""

    def __init__(
        self, source: Source, out: Path, settings: dict[str, Any], shard_bytes: int
    ) -> None:
        self.source, self.out, self.settings = source, out, settings
        self.shard_bytes = shard_bytes
        self._read: dict[Path, Shard] = {}
        self._old: set[str] = set()
        """Shards of the store before this build, by name."""

    def run(self, part: Part, workers: int | None, progress: Progress) -> int:
        """Build a part; see :func:`build_part`."""
        if (self.out / INDEX).exists() or (self.out / "meta.json").exists():
            index = read_index(self.out)
            self._check_settings(index.about["settings"])
            if self._is_whole(index) and _is_current(index, self.source):
                return 0
            self._old = {Path(file).stem for file, _ in index.about["shards"]}
        with _storage_errors(self.out):
            self._claim()
            count = workers or default_workers(
                ["dali"] if self.source.decoder == "dali" else ["pyav"]
            )
            with WorkerPool(count) as pool:
                self._build(part, pool, progress)
            missing = self._missing(self._kept())
            if not missing:
                self._finish()
        return len(missing)

    def _is_whole(self, index: Index) -> bool:
        """Whether the files of all shards have their lengths."""
        with suppress(FileNotFoundError):
            return all((self.out / f).stat().st_size == n for f, n in index.about["shards"])
        return False

    def _check_settings(self, found: dict[str, Any]) -> None:
        """Raise :class:`UserError` if the store has other settings; its clips may differ."""
        for key, value in self.settings.items():
            if found[key] != value:
                raise UserError(
                    f"{self.out}: contains a store with {key} {found[key]}, not {value}; delete it "
                    "or choose another folder"
                )

    def _claim(self) -> None:
        """Make the folder; :class:`UserError` if it contains something else."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: is a file, not a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in self.out.iterdir() if path.suffix != ".tmp"}
        if "plan.json" in names:
            raise older_version(self.out)
        if names and not names & {INDEX, LOCK}:
            raise UserError(f"{self.out}: is neither empty nor a store; choose another folder")
        (self.out / LOCK).touch()
        self._check_clips()

    def _check_clips(self) -> None:
        """Raise :class:`UserError` if most of the clips that exist are of another data set."""
        names = [name for shard in self._shards().values() for name in shard.clips]
        known = set(self.source.names)
        gone = sum(name not in known or self.source.state(name) == GONE for name in names)
        if gone > len(names) / 2:
            raise UserError(
                f"{self.out}: contains a store of other videos ({gone} of its {len(names)} are "
                "missing); delete it or choose another folder"
            )

    def _shards(self) -> dict[Path, Shard]:
        """Read the records of all complete shards, by their path."""
        for record in sorted(self.out.glob(f"{SHARD_FILES}.json")):
            if record not in self._read and (shard := read_shard(record)) is not None:
                self._check_settings(shard.settings)
                self._read[record] = shard
        return self._read

    def _kept(self) -> dict[Path, Shard]:
        """Return the shards whose clips are unchanged; each clip is in one of them."""
        shards = sorted(self._shards().items())
        states = [of for _, shard in shards for of in shard.states().items()]
        same = iter(_unchanged(self.source, states))
        kept, done = dict[Path, Shard](), set[str]()
        for record, shard in shards:
            usable = {name for name in shard.states() if next(same)}
            clips = shard.clips.keys() & usable
            bad = {name: of for name, of in shard.bad_files.items() if name in usable}
            if len(clips) == len(shard.clips) and (clips or bad) and not clips & done:
                done |= clips
                kept[record] = Shard(shard.settings, shard.clips, bad)
        return kept

    def _missing(self, kept: dict[Path, Shard]) -> set[str]:
        """Return the clips that are in no shard."""
        done = {name for shard in kept.values() for name in (*shard.clips, *shard.bad_files)}
        return set(self.source.names) - done

    def _build(self, part: Part, pool: WorkerPool, progress: Progress) -> None:
        """Build the missing clips of a part, and wait for other processes that do so."""
        total = len(self.source.names)
        places = {name: place for place, name in enumerate(self.source.names)}

        def missing_groups() -> list[list[str]]:
            kept = self._kept()
            missing = self._missing(kept)
            progress(total - len(missing), total)
            old = {name for of, one in kept.items() if of.stem in self._old for name in one.clips}
            new = (name for name in self.source.names if name not in old)
            groups = grouped(new, missing, total)
            return [
                group for group in groups
                if places[group[0]] * part.total // total == part.number
            ]  # fmt: skip

        waits = False
        while groups := missing_groups():
            done = total - sum(map(len, groups))
            if waits:
                log.info("%s: waiting for shards that other processes build", self.out)
                time.sleep(WAIT_SECONDS)
            else:
                log.info("decoding %d of %d videos into %s", total - done, total, self.out)
            tasks = (
                ShardTask(self.out, self.source.only(group), self.settings, self.shard_bytes)
                for group in groups
            )
            waits = True
            for count in pool.run(build_shards, tasks, refuse_lost):
                done += count
                waits = waits and not count
                progress(done, total)

    def _finish(self) -> None:
        """Write the index, and delete what it does not name, unless another process has done so."""
        with locked(self.out / LOCK):
            self._read.clear()
            kept = self._kept()
            if self._missing(kept):
                raise UserError(
                    f"{self.out}: the videos changed while the store was built; the same command "
                    "continues"
                )
            bad = {name: of for shard in kept.values() for name, of in shard.bad_files.items()}
            write_json(self.out / BAD_FILES, {name: bad[name][0] for name in sorted(bad)})
            make_index(self.source.names, kept, self.settings).write(self.out / INDEX)
            remove_temporaries(self.out, ["*"])
            for path in self.out.glob(f"{SHARD_FILES}.*"):
                if path.with_suffix(".json") not in kept or path.suffix not in (".json", ".u8"):
                    path.unlink(missing_ok=True)
            (self.out / LOCK).unlink(missing_ok=True)


def _is_current(index: Index, source: Source) -> bool:
    """Whether a store has exactly the clips of a source, in the state in which they are."""
    rows = index.find(source.names)
    if len(source.names) != len(index) + len(index.bad_files):
        return False
    bad = {name: State(*at) for name, (_, *at) in index.about["bad_files"].items()}
    then = np.zeros((len(rows), 2), np.int64)
    then[rows >= 0] = index.columns["state"][rows[rows >= 0]]
    now = np.array([source.state(name) for name in source.names], np.int64)
    for at in np.flatnonzero(rows < 0).tolist():
        then[at] = bad.get(source.names[at], State(-1, -1))
    return bool(unchanged(now, then).all())


def _unchanged(source: Source, then: Sequence[tuple[str, State]]) -> list[bool]:
    """Return which clips have the state that they had then."""
    known = set(source.names)
    now = [source.state(name) if name in known else State(-1, -1) for name, _ in then]
    before = [state for _, state in then]
    pairs = (np.array(of, np.int64).reshape(-1, 2) for of in (now, before))
    return unchanged(*pairs).tolist()


@contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    """Turn refusals of the file system into :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"{out}: cannot be written: {error.strerror}") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{out}: {error.strerror}; make room, and the same command continues"
            ) from None
        raise
