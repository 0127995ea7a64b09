"""The frame store: every frame of a set of videos, decoded once, as patch rows on disk.

A store is a folder::

    meta.json         version, sizes, decoder, digest of the videos, length and sha256 of the rest
    index.json        video -> [shard, first frame in it, number of frames]
    bad_files.json    video -> why it is not in the store
    shard-00000.u8    uint8 [frames, N, 3PP], one after the other

A visible patch of a frame is one contiguous read. ``meta.json`` is written last: a folder without
it is a build that did not end, and :func:`build_store` continues it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..errors import UserError
from ..files import write_json
from .decode import DecoderName, choose_decoder, resolve_decoder
from .index import VideoError, probe
from .shards import (
    Shard,
    ShardTask,
    assign_videos,
    build_shard,
    finished_shard,
    shard_records,
)
from .workers import run_tasks, usable_cpus

log = logging.getLogger(__name__)

VERSION = 1
META, INDEX, BAD_FILES, PLAN = "meta.json", "index.json", "bad_files.json", "plan.json"
SHARD_BYTES = 128 * 2**20
Placement = Literal["disk", "ram"]


class FrameStore:
    """An open store. Opening checks its version, every file's length and the index's checksum.

    ``placement="ram"`` reads all shards into memory; on disk they are memory maps.
    """

    def __init__(self, path: Path, placement: Placement = "disk", verify: bool = False) -> None:
        """Raises :class:`UserError` if the folder holds no whole store.

        ``verify`` also compares every shard's checksum, which reads the whole store.
        """
        if placement not in get_args(Placement):
            raise UserError(f"placement: {placement!r} is not one of disk, ram")
        self.path = Path(path)
        meta = _read_meta(self.path)
        self.image_size: int = meta["image_size"]
        self.patch_size: int = meta["patch_size"]
        self.decoder: str = meta["decoder"]
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.patch_dim = 3 * self.patch_size**2
        self._files: dict[str, dict[str, Any]] = meta["files"]
        self._check_lengths()
        self._check_contents(INDEX)
        self._check_contents(BAD_FILES)
        if verify:
            self.verify()
        self._index: dict[str, list[int]] = json.loads((self.path / INDEX).read_text())
        self.bad_files: dict[str, str] = json.loads((self.path / BAD_FILES).read_text())
        self.names = list(self._index)
        shards = [name for name in self._files if name not in (INDEX, BAD_FILES)]
        self._shards = [self._open_shard(name, placement) for name in shards]

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def num_frames(self, name: str) -> int:
        """Frames of the video of that name (its file's stem)."""
        return self._entry(name)[2]

    def rows(
        self, name: str, frame_ids: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """uint8 ``[T, N, 3PP]``: the patch rows of these frames, in this order, in one copy.

        They are written to ``out`` if it is given. Raises ``IndexError`` for a frame that does not
        exist, :class:`UserError` for a video that the store does not hold.
        """
        shard, first, frames = self._entry(name)
        ids = np.asarray(frame_ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < frames:
            raise IndexError(f"{name}: has frames 0 to {frames - 1}, not all of {ids.tolist()}")
        # The ids are checked: "clip" only spares NumPy the buffer that "raise" needs with out.
        return np.take(self._shards[shard][first : first + frames], ids, 0, out, mode="clip")

    def verify(self) -> None:
        """Compare every file with its checksum; :class:`UserError` names one that differs."""
        for name in self._files:
            self._check_contents(name)

    def _entry(self, name: str) -> list[int]:
        try:
            return self._index[name]
        except KeyError:
            reason = self.bad_files.get(name, "it was not among the videos the store was built of")
            raise UserError(f"{self.path}: no frames of {name}: {reason}") from None

    def _check_lengths(self) -> None:
        for name, built in self._files.items():
            path = self.path / name
            size = path.stat().st_size if path.exists() else 0
            if size != built["bytes"]:
                raise UserError(
                    f"{path}: {size:,} bytes, not {built['bytes']:,} as built; "
                    "delete the store and build it again"
                )

    def _check_contents(self, name: str) -> None:
        if _sha256(self.path / name) != self._files[name]["sha256"]:
            raise UserError(
                f"{self.path / name}: its contents changed since it was built; "
                "delete the store and build it again"
            )

    def _open_shard(self, name: str, placement: Placement) -> np.ndarray:
        path, shape = self.path / name, (-1, self.num_patches, self.patch_dim)
        if placement == "ram" or not self._files[name]["bytes"]:  # an empty file cannot be mapped
            return np.fromfile(path, np.uint8).reshape(shape)
        return np.memmap(path, np.uint8, "r").reshape(shape)


def default_store_path(
    root: Path, image_size: int, patch_size: int, decoder: DecoderName = "auto"
) -> Path:
    """Where the store of a data set lies unless the user says otherwise."""
    return Path(root) / f"store-{image_size}-p{patch_size}-{resolve_decoder(decoder)}"


def build_store(
    videos: Sequence[Path],
    out: Path,
    image_size: int,
    patch_size: int,
    decoder: DecoderName = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> FrameStore:
    """Decode every frame of ``videos`` into a store at ``out``, or open it if it is there.

    Videos are known by the stem of their file's name. Files that cannot be used are left out,
    logged and listed with reasons in ``bad_files.json``. A build that was interrupted, by whatever,
    continues from its finished shards; several processes may ask for the same store, one builds
    it and the others wait. The bytes do not depend on ``workers`` (default: all usable CPUs).
    ``progress(done, total)`` counts frames. Workers are spawned: a script that calls this needs
    the ``if __name__ == "__main__":`` that multiprocessing asks for.

    Raises :class:`UserError` if ``out`` holds a store of other videos or settings.
    """
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise UserError(f"image_size: {image_size} is not a multiple of patch_size {patch_size}")
    if workers is not None and workers < 1:
        raise UserError(f"workers: {workers} is not a whole number of at least 1")
    plan = {
        "version": VERSION,
        "image_size": image_size,
        "patch_size": patch_size,
        "decoder": resolve_decoder(decoder),
        "source_digest": _source_digest(videos),
        "shard_bytes": shard_bytes,
    }
    out = Path(out)
    with _locked_folder(out):
        if not (out / META).exists():
            if decoder == "auto":
                log.info("decoder: %s, because %s", *choose_decoder())
            _build(videos, out, plan, workers or usable_cpus(), progress or (lambda *_: None))
        _check_plan(out / META, plan)
        for leftover in (*shard_records(out), out / PLAN):
            leftover.unlink(missing_ok=True)
    store = FrameStore(out)
    if store.bad_files:
        log.warning(
            "%d of %d videos cannot be used; the reasons are in %s",
            *(len(store.bad_files), len(videos), out / "bad_files.json"),
        )
    return store


def _build(
    videos: Sequence[Path],
    out: Path,
    plan: dict[str, Any],
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    if (out / PLAN).exists():
        _check_plan(out / PLAN, plan)
    elif any(path.suffix != ".tmp" for path in out.iterdir()):
        raise UserError(f"{out}: is neither empty nor a store; name another folder")
    write_json(out / PLAN, plan)
    for leftover in out.glob("*.tmp"):
        leftover.unlink()

    frames, bad_files = _probe_all(videos)
    settings = plan["image_size"], plan["patch_size"], plan["decoder"]
    groups = assign_videos(frames, 3 * plan["image_size"] ** 2, plan["shard_bytes"])
    tasks = [
        ShardTask(
            out / f"shard-{i:05d}.u8", tuple(group), tuple(frames[v] for v in group), *settings
        )
        for i, group in enumerate(groups)
    ]
    shards = _build_shards(tasks, workers, progress)

    index = {}
    for number, shard in enumerate(shards):
        first = 0
        for name, count in shard.frames.items():
            index[name] = [number, first, count]
            first += count
        bad_files |= shard.bad_files
    write_json(out / INDEX, index)
    write_json(out / BAD_FILES, dict(sorted(bad_files.items())))
    files = {
        name: {"bytes": (out / name).stat().st_size, "sha256": _sha256(out / name)}
        for name in (INDEX, BAD_FILES)
    }
    files |= {shard.file: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards}
    kept = {key: value for key, value in plan.items() if key != "shard_bytes"}
    write_json(out / META, kept | {"files": files})


def _build_shards(
    tasks: Sequence[ShardTask], workers: int, progress: Callable[[int, int], None]
) -> list[Shard]:
    """The shards in order, those that an earlier build finished and the others."""
    shards = {task.path.name: finished_shard(task) for task in tasks}
    missing = [task for task in tasks if shards[task.path.name] is None]
    total, left = (sum(sum(task.expected_frames) for task in some) for some in (tasks, missing))

    def report(count: int) -> None:
        nonlocal left
        left -= count
        progress(total - left, total)

    report(0)
    for shard in run_tasks(build_shard, missing, workers, report):
        shards[shard.file] = shard
    return [shard for shard in shards.values() if shard is not None]


def _probe_all(videos: Sequence[Path]) -> tuple[dict[Path, int], dict[str, str]]:
    """Frames per video whose header can be read, and the reasons for the others."""
    frames: dict[Path, int] = {}
    bad_files: dict[str, str] = {}
    for video in videos:
        try:
            frames[video] = probe(video).frames
        except VideoError as error:
            bad_files[video.stem] = str(error)
    return frames, bad_files


def _source_digest(videos: Sequence[Path]) -> str:
    """Changes with the videos' names, order or lengths; reading them all would take too long."""
    if not videos:
        raise UserError("no videos to build a store of")
    digest = hashlib.sha256()
    seen: set[str] = set()
    for video in videos:
        if video.stem in seen:
            raise UserError(f"{video}: two videos have this name; each may come once")
        seen.add(video.stem)
        size = video.stat().st_size if video.is_file() else -1
        digest.update(f"{video.stem}\0{size}\0".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / META).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: is not a frame store, or its build did not end") from None
    if meta["version"] != VERSION:
        raise UserError(
            f"{path}: is a store of version {meta['version']}, this is version {VERSION}; "
            "delete it and build it again"
        )
    return meta


def _check_plan(file: Path, plan: dict[str, Any]) -> None:
    found = json.loads(file.read_text())
    for key, wanted in plan.items():
        if found.get(key, wanted) == wanted:
            continue
        what = f"of {key} {found[key]}, not {wanted}"
        if key == "source_digest":
            what = "of other videos (names or file sizes differ)"
        raise UserError(f"{file.parent}: holds a store {what}; delete it or name another folder")


@contextmanager
def _locked_folder(path: Path) -> Iterator[None]:
    """Make the folder and hold it alone; the lock goes with the process, however that ends."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, not a folder")
    path.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for the process that builds it", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
