"""The frame store: every frame of a data set's videos, decoded once, as patch rows.

A store is a folder::

    index.safetensors      settings; for each video its shard, place and number of frames
    bad_files.json         videos that cannot be used -> reason
    shard-<id>.u8, .json   uint8 [frames, N, 3PP]; which videos these are, and their checksums
    labels-<task>.safetensors   clips and labels of a task, see :mod:`ivcl_fast.data.store.labels`

Reading a patch of a frame is one contiguous read. The index is written last. A folder without it is
an unfinished build, which :func:`~ivcl_fast.data.store.build.build_store` continues.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ivcl_fast.data.store.placement import Placement, choose_placement
from ivcl_fast.data.store.shards import VERSION, older_version
from ivcl_fast.data.store.table import Index, Strings
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

INDEX, BAD_FILES = "index.safetensors", "bad_files.json"
OPEN_SHARDS = 512
"""Shards that are mapped at a time; a process has a limit of open files."""
READ_AHEAD_BYTES = 2**16
"""Size of a frame from which it pays to announce that it will be read."""
PLACES = {"disk": "on disk", "ram": "in memory", "gpu": "in GPU memory"}


class FrameStore:
    """An open frame store.

    Opening checks the version and the length of every shard; :meth:`verify` checks the frames. On
    disk, shards are memory maps, which all readers of a machine share; in RAM, every reader has its
    own copy; on a GPU, the store is a tensor, from which batches are gathered.

    Example::

        >>> store = FrameStore(Path("all_actions/store-64-p8-pyav"))
        >>> store.rows("CATER_new_000123", [0, 150, 300]).shape
        (3, 64, 192)
    """

    def __init__(
        self,
        path: Path,
        placement: Placement = "disk",
        device: torch.device | None = None,
        step_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Open the store at ``path``.

        Args:
            placement: ``disk``, ``ram``, ``gpu``, or ``auto``: the fastest place with enough room.
            device: device for training, where ``gpu`` places the store.
            step_bytes: returns what a training step takes there, which ``auto`` leaves free.

        Raises:
            UserError: the folder is not a complete store, or there is no device for ``gpu``.
        """
        self.path = Path(path)
        self.index = read_index(self.path)
        settings = self.index.about["settings"]
        self.image_size: int = settings["image_size"]
        self.patch_size: int = settings["patch_size"]
        self.decoder: str = settings["decoder"]
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.patch_dim = 3 * self.patch_size**2
        self._files: list[tuple[str, int]] = self.index.about["shards"]
        self._check_lengths()
        self.bytes: int = sum(size for _, size in self._files)
        """Size of all frames."""
        self.placement, reason = choose_placement(placement, self.bytes, device, step_bytes)
        if self.placement == "gpu" and device is None:
            raise UserError("placement: gpu needs a device; accepted without one: auto, disk, ram")
        if placement != "disk":
            where = PLACES[self.placement]
            log.info("store: %s, %.2f GB %s, %s", self.path, self.bytes / 1e9, where, reason)
        self._on_device = self._load(device) if self.placement == "gpu" else None
        in_memory = self.placement == "ram"
        self._shard = lru_cache(None if in_memory else OPEN_SHARDS)(
            self._load_shard if in_memory else self._map_shard
        )
        if self._on_device is None:
            # Now, because a build may replace them while this store is used.
            for number in range(
                len(self._files) if in_memory else min(OPEN_SHARDS, len(self._files))
            ):
                self._shard(number)

    @property
    def names(self) -> Strings:
        """Names of the videos."""
        return self.index.names

    @property
    def bad_files(self) -> dict[str, str]:
        """Videos that are not in the store, with the reason."""
        return self.index.bad_files

    def num_frames(self, name: str) -> int:
        """Return the number of frames of a video."""
        return int(self.index.frames[self._find([name])[0]])

    def rows(
        self, name: str, frame_ids: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read the patch rows of frames: uint8 ``[T, N, 3PP]``, in ``out`` if it is given.

        Raises ``IndexError`` for a frame that does not exist, and :class:`UserError` for videos
        that the store does not contain.
        """
        if self._on_device is not None:
            rows = self.batch([name], [np.asarray(frame_ids)])[0].cpu().numpy()
            if out is None:
                return rows
            out[...] = rows
            return out
        return self._read(int(self._find([name])[0]), frame_ids, out)

    def batch(
        self, names: Sequence[str], frame_ids: Sequence[np.ndarray], pin: bool = False
    ) -> torch.Tensor:
        """Read B clips, each given by the name of its video and T frames: uint8 ``[B, T, N, 3PP]``.

        The result is on the device of the store; ``pin`` allocates page-locked memory.
        """
        length = len(frame_ids[0]) if names else 0
        shape = (len(names), length, self.num_patches, self.patch_dim)
        found = self._find(names).tolist()
        if self._on_device is not None:
            rows = [
                self._starts[self.index.columns["shard"][at]] + self._places(at, ids)
                for at, ids in zip(found, frame_ids, strict=True)
            ]
            chosen = torch.from_numpy(np.concatenate(rows))
            if pin:  # otherwise the copy would wait for pending steps
                chosen = chosen.pin_memory()
            chosen = chosen.to(self._on_device.device, non_blocking=pin)
            return self._on_device.index_select(0, chosen).view(shape)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        for at, ids, out in zip(found, frame_ids, batch.numpy(), strict=True):
            self._read(at, ids, out)
        return batch

    def verify(self) -> None:
        """Compare the checksums of all frames; :class:`UserError` names a shard that differs."""
        columns = self.index.columns
        expected = columns["sha256"].reshape(-1, 32)
        for number, (file, size) in enumerate(self._files):
            frames = self._map_shard(number)
            rows = np.flatnonzero(columns["shard"] == number)
            if sum(columns["frames"][rows].tolist()) != len(frames):
                raise self._changed(file, size)
            for row in rows.tolist():
                first, count = columns["first"][row], columns["frames"][row]
                digest = hashlib.sha256(frames[first : first + count].data).digest()
                if digest != expected[row].tobytes():
                    raise self._changed(file, size)

    def copies(self, rows: np.ndarray, others: np.ndarray) -> list[tuple[str, str]]:
        """Pair videos that have exactly the frames of one of ``others`` with that one, by name.

        Both are rows of the index; -1 is ignored.
        """
        others = np.unique(others[others >= 0])
        rows = np.setdiff1d(rows[rows >= 0], others)
        digests = self.index.columns["sha256"].reshape(-1, 32)
        starts = np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
        by_digest = {digests[at].tobytes(): at for at in others.tolist()} if len(rows) else {}
        similar = rows[np.isin(starts[rows], starts[others])]
        same = [(at, by_digest.get(digests[at].tobytes())) for at in similar.tolist()]
        return [(self.names[at], self.names[of]) for at, of in same if of is not None]

    def _find(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of videos in the index."""
        rows = self.index.find(names)
        for at in np.flatnonzero(rows < 0).tolist():
            reason = self.bad_files.get(names[at], "the store was built without it")
            raise UserError(f"{self.path}: no frames of {names[at]}: {reason}")
        return rows

    def _places(self, row: int, frame_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return where frames of a video, which have to exist, are in its shard."""
        ids, frames = np.asarray(frame_ids, np.int64), self.index.frames[row]
        if ids.size and not 0 <= ids.min() <= ids.max() < frames:
            name = self.index.names[row]
            raise IndexError(f"{name}: has frames 0 to {frames - 1}, not all of {ids.tolist()}")
        return self.index.columns["first"][row] + ids

    def _read(
        self, row: int, frame_ids: Sequence[int] | np.ndarray, out: np.ndarray | None
    ) -> np.ndarray:
        places = self._places(row, frame_ids)
        frames = self._shard(int(self.index.columns["shard"][row]))
        if self.placement == "disk" and frames.strides[0] >= READ_AHEAD_BYTES:
            _read_ahead(frames, places)
        # The places are checked; "clip" avoids the buffer that NumPy needs for "raise" with out.
        return np.take(frames, places, 0, out, mode="clip")

    def _check_lengths(self) -> None:
        for file, built in self._files:
            path = self.path / file
            size = path.stat().st_size if path.exists() else 0
            if size != built:
                raise UserError(
                    f"{path}: {size:,} bytes, not {built:,} as built; delete it, and the command "
                    "that built the store builds it again"
                )

    def _load_shard(self, number: int) -> np.ndarray:
        return self._reshaped(np.fromfile(self.path / self._files[number][0], np.uint8))

    def _map_shard(self, number: int) -> np.ndarray:
        file, size = self._files[number]
        if not size:  # empty files cannot be mapped
            return self._reshaped(np.empty(0, np.uint8))
        with (self.path / file).open("rb") as opened:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        content.madvise(mmap.MADV_RANDOM)  # read what is asked for, and nothing around it
        return self._reshaped(np.frombuffer(content, np.uint8))

    def _reshaped(self, content: np.ndarray) -> np.ndarray:
        return content.reshape(-1, self.num_patches, self.patch_dim)

    def _load(self, device: torch.device | None) -> torch.Tensor:
        """Load the entire store to the device, shard by shard."""
        row = self.num_patches * self.patch_dim
        self._starts = np.cumsum([0] + [size // row for _, size in self._files])
        whole = torch.empty(int(self._starts[-1]), row, dtype=torch.uint8, device=device)
        for number, (file, _) in enumerate(self._files):
            shard = np.fromfile(self.path / file, np.uint8).reshape(-1, row)
            whole[self._starts[number] : self._starts[number + 1]] = torch.from_numpy(shard)
        return whole

    def _changed(self, file: str, size: int) -> UserError:
        return UserError(
            f"{self.path / file}: damaged: its {size:,} bytes do not match their checksums; delete "
            "it, and the command that built the store builds it again"
        )


def read_index(store: Path) -> Index:
    """Read the index of a store; :class:`UserError` if it is missing, damaged or too old."""
    file = Path(store) / INDEX
    try:
        index = Index.read(file)
        if index.about["settings"]["version"] != VERSION:
            raise older_version(store)
        return index
    except (FileNotFoundError, NotADirectoryError):
        if (Path(store) / "meta.json").exists():
            raise older_version(store) from None
        raise UserError(f"{store}: is not a frame store, or its build is not finished") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: damaged: {error}; delete this file, and the command that built the store "
            "writes it again"
        ) from None


def _read_ahead(frames: np.ndarray, places: np.ndarray) -> None:
    """Tell the system that frames of a mapped file are needed soon, all at once."""
    content = frames.base.base if isinstance(frames.base, np.ndarray) else None
    if isinstance(content, mmap.mmap):
        step = frames.strides[0]
        for start in (places * step).tolist():
            page = start - start % mmap.PAGESIZE
            content.madvise(mmap.MADV_WILLNEED, page, start + step - page)
