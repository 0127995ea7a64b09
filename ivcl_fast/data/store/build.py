"""Builds a frame store with any number of processes; a build continues after kills and crashes.

A build has three steps. Under a lock, one process makes the plan: it probes all media and writes
``plan.json``. Then all processes that need the store build shards; each shard has its own lock.
Under the first lock again, one process writes the index and finally ``meta.json``. If a process
is stopped, the next one keeps the finished shards and continues. The jobs of an array may build a
fixed part of the shards each, which needs no locks; the last of them writes the index.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ivcl_fast.data.bad_files import summary
from ivcl_fast.data.crop import Square
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import (
    DecoderName,
    decoding_gpu,
    decoding_timeout,
    default_workers,
    resolve_decoder,
)
from ivcl_fast.data.store.frame_store import (
    BAD_FILES,
    INDEX,
    VERSION,
    FrameStore,
    file_digest,
    read_meta,
    write_meta,
)
from ivcl_fast.data.store.index import SecondChance, reading_timeout, source_digest
from ivcl_fast.data.store.placement import Placement
from ivcl_fast.data.store.plan import (
    CROPS,
    LOCK,
    PLAN,
    check_settings,
    finished,
    make_plan,
    read_plan,
    shard_tasks,
)
from ivcl_fast.data.store.shards import (
    META,
    ShardTask,
    build_shard,
    finished_shard,
    is_finished,
    shard_leftovers,
)
from ivcl_fast.data.store.sources import digest_of, state_of, write_sources
from ivcl_fast.data.workers import STALL_SECONDS, WorkerPool, usable_cpus
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, remove_temporaries, write_json
from ivcl_fast.progress import Bar

log = logging.getLogger(__name__)

SHARD_BYTES = 128 * 2**20
WAIT_SECONDS = 1.0
"""Seconds between two checks of the shards that other processes build."""


class Part(NamedTuple):
    """A part of the shards: every ``total``-th, from ``number`` on."""

    number: int
    """From 0."""
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

    Where ``auto`` is DALI and has no store yet, a finished one of the same files that PyAV made, as
    on a machine without a GPU, is taken. ``named``: task and crop of :func:`default_store_path`.
    """
    out = default_store_path(root, *sizes, decoder, **named)
    other = default_store_path(root, *sizes, "pyav", **named)
    if decoder != "auto" or other == out or (out / META).exists():
        return out, decoder
    with suppress(UserError):  # there is none, or it is damaged
        if read_meta(other)["source_digest"] == source_digest(media):
            log.info("store: PyAV has made %s, which is used; --decoder dali makes another", other)
            return other, "pyav"
    return out, decoder


def build_store(
    media: Sequence[Media],
    out: Path,
    image_size: int,
    patch_size: int,
    decoder: DecoderName = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
    stall_seconds: float = STALL_SECONDS,
    placement: Placement = "disk",
    device: torch.device | None = None,
    crop: Square = "none",
    step_bytes: Callable[[], int] | None = None,
) -> FrameStore:
    """Decode every frame of ``media`` into a store at ``out``, or open the store if it exists.

    Media that cannot be used are left out, logged, and listed with the reason in
    ``bad_files.json``; so are media whose decoder twice crashed, or hung for ``stall_seconds``.
    An interrupted build continues from its finished shards. If media were added, changed or
    removed, or bad files have changed, only the shards with such media are replaced, and new media
    come into new shards; a store that is open goes on with what it has. Processes that need the
    same store (such as the ranks of torchrun, on one or several machines) build it together.

    Args:
        out: folder of the store.
        image_size: height and width that frames are resized to; a multiple of ``patch_size``.
        decoder: ``auto``, ``dali`` or ``pyav``.
        workers: processes; default one per CPU, or per NVDEC. With 1 this process decodes, and
            ends if a decoder crashes. The bytes do not depend on it.
        progress: called with (frames done, frames in total); beside a :class:`Bar`, another shows
            how many videos are probed.
        shard_bytes: largest size of a shard.
        crop: part of the frames to resize to the square; by default all of them.
        placement, device, step_bytes: see :class:`FrameStore`; DALI decodes on ``device`` if it
            is a GPU.

    Raises:
        UserError: ``out`` contains a store of other settings, a store more than half of whose media
            are missing, or something else; cannot be written, or the disk is full.

    Example::

        >>> store = build_store(dataset.media(), Path("store"), image_size=64, patch_size=8)
        >>> store.rows(store.names[0], [0, 1]).shape
        (2, 64, 192)
    """
    build = StoreBuild(media, out, image_size, patch_size, decoder, shard_bytes, crop)
    build.run(Part(0, 1), workers, progress, stall_seconds, device)
    return build.open(placement, device, step_bytes)


class StoreBuild:
    """The build of a store, as :func:`build_store` describes it, for jobs that do a part of it."""

    def __init__(
        self,
        media: Sequence[Media],
        out: Path,
        image_size: int,
        patch_size: int,
        decoder: DecoderName = "auto",
        shard_bytes: int = SHARD_BYTES,
        crop: Square = "none",
    ) -> None:
        check_sizes(image_size, patch_size)
        self.media, self.out, self.decoder = media, Path(out), decoder
        self.states = {one.name: state_of(one) for one in media}
        self.settings: dict[str, Any] = {
            "version": VERSION,
            "image_size": image_size,
            "patch_size": patch_size,
            "crop": CROPS[crop],
            "decoder": resolve_decoder(decoder),
            "source_digest": source_digest(media),
            "state": digest_of(self.states),
            "shard_bytes": shard_bytes,
        }

    def run(
        self,
        part: Part,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        stall_seconds: float = STALL_SECONDS,
        device: torch.device | None = None,
    ) -> int:
        """Build a part of the missing shards, and wait for no other part.

        Parts may run at the same time on machines that share the folder. Returns the number of
        shards that other parts have to build yet; 0 if the store is complete, which the last part
        does.
        """
        gpu = decoding_gpu(device)
        if workers is not None and workers < 1:
            raise UserError(f"workers: {workers} is not accepted; accepted: at least 1")
        out = self.out
        if (out / META).exists():
            meta = read_meta(out)
            check_settings(out, meta, self.settings)
            same = meta["source_digest"] == self.settings["source_digest"]
            if is_finished(out, self.settings["state"]) or (same and not os.access(out, os.W_OK)):
                return 0
        with _storage_errors(out), WorkerPool(workers or usable_cpus(), stall_seconds) as pool:
            _claim(out)
            plan = make_plan(
                self.media, out, self.settings, self.states, self.decoder, pool, gpu,
                shows_progress=isinstance(progress, Bar),
            )  # fmt: skip
            if plan is None:
                return 0
            tasks = shard_tasks(self.media, out, plan, gpu)
            pool.workers = workers or default_workers(plan["decoders"].values())
            decoding = decoding_timeout(stall_seconds, plan["frames"].values())
            pool.stall_seconds = max(decoding, reading_timeout(self.media))
            own = tasks[part.number :: part.total]
            _build_shards(own, pool, progress or (lambda *_: None))
            if left := len(_missing(tasks)):
                return 0 if is_finished(out, plan["state"]) else left
            _finish(out, self.settings, plan, list(self.states))
        return 0

    def open(
        self,
        placement: Placement,
        device: torch.device | None,
        step_bytes: Callable[[], int] | None = None,
    ) -> FrameStore:
        """Open the store, which is complete, and delete what its build has left."""
        out = self.out
        # A finished store may be in a read-only folder, and another process may renew it by now.
        with suppress(OSError), locked(out / LOCK, wait=False) as held:
            if held and is_finished(out, self.settings["state"]):
                remove_temporaries(out, ["*"])
                for leftover in (out / PLAN, *shard_leftovers(out, read_meta(out)), out / LOCK):
                    leftover.unlink(missing_ok=True)
        store = FrameStore(out, placement, device, step_bytes)
        if store.bad_files:
            log.warning(summary(store.bad_files, len(self.media), out / BAD_FILES))
        return store


def _claim(out: Path) -> None:
    """Make the folder; :class:`UserError` if it contains something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, not a folder")
    out.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in out.iterdir() if path.suffix not in (".tmp", ".lock")}
    if names and not names & {PLAN, META}:
        raise UserError(f"{out}: is neither empty nor a store; choose another folder")


def _build_shards(
    tasks: Sequence[ShardTask], pool: WorkerPool, progress: Callable[[int, int], None]
) -> None:
    """Build shards, and wait for other processes, until all shards are finished."""
    total = sum(sum(task.expected_frames) for task in tasks)
    second_chance = SecondChance()
    waits = False
    while missing := _missing(tasks):
        folder = tasks[0].path.parent
        if is_finished(folder, tasks[0].state):  # by another process
            return
        left = sum(sum(task.expected_frames) for task in missing)
        if waits:
            log.info("%s: waiting for shards that other processes build", folder)
            time.sleep(WAIT_SECONDS)
        else:
            log.info("decoding %d of %d frames into %s", left, total, folder)

        def report(count: int) -> None:
            nonlocal left
            left -= count
            progress(total - left, total)

        report(0)
        for _ in pool.run(build_shard, missing, report, second_chance):
            pass
        waits = True
    progress(total, total)


def _missing(tasks: Sequence[ShardTask]) -> list[ShardTask]:
    return [task for task in tasks if not finished_shard(task.path)]


def _finish(
    out: Path, settings: dict[str, Any], plan: dict[str, Any], names: Sequence[str]
) -> None:
    """Write the index and the meta file, unless another process has done so."""
    with locked(out / LOCK):
        if is_finished(out, plan["state"]):
            return
        if not (out / PLAN).exists() or read_plan(out / PLAN)["state"] != plan["state"]:
            raise UserError(
                f"{out}: the videos changed while the store was built; the same command continues"
            )
        shards, bad_files, sources = finished(out, plan)
        places: dict[str, list[int]] = {}
        for number, shard in enumerate(shards):
            first = 0
            for name, count in shard.frames.items():
                places[name] = [number, first, count]
                first += count
        write_json(out / INDEX, {name: places[name] for name in names if name in places})
        write_json(out / BAD_FILES, dict(sorted(bad_files.items())))
        write_sources(out, sources)
        files = {
            name: {"bytes": (out / name).stat().st_size, "sha256": file_digest(out / name)}
            for name in (INDEX, BAD_FILES)
        }
        files |= {shard.file: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards}
        meta = {key: value for key, value in settings.items() if key != "shard_bytes"}
        write_meta(out, meta | {"files": files})


@contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    """Turn refusals of the file system into :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"{out}: cannot be written: {error.strerror}") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{out}: {error.strerror}; {_space_needed(out)}") from None
        raise


def _space_needed(out: Path) -> str:
    with suppress(OSError, ValueError):
        plan = read_plan(out / PLAN)
        whole = sum(plan["frames"].values()) * 3 * plan["image_size"] ** 2
        written = sum((out / n).stat().st_size for n in plan["shards"] if (out / n).exists())
        free = shutil.disk_usage(out).free
        return (
            f"the store needs {(whole - written) / 1e9:.2f} GB more and {free / 1e9:.2f} GB are "
            "free; make room, and the same command continues"
        )
    return "make room, and the same command continues"
