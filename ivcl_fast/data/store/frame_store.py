"""The frame store: every frame of a data set's videos, decoded once, as patch rows.

A store is a folder::

    index.safetensors      settings; for each video its shard, position and number of frames
    labels-<task>.safetensors   clips and labels of a task, see :mod:`ivcl_fast.data.store.labels`
    bad_files.json         videos that cannot be used -> reason
    shard-*.u8             uint8 [frames, N, 3PP]
    shard-*.json           for the next build, see :mod:`ivcl_fast.data.store.shards`

Reading a patch of a frame is one contiguous read. The index is written last. A folder without it is
an unfinished build, which :func:`~ivcl_fast.data.store.build.build_store` continues. A store may
also be in object storage, see :mod:`ivcl_fast.data.store.cache`.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivcl_fast.data.store.cache import ORIGIN, RemoteShards, local_store
from ivcl_fast.data.store.folder import Folder
from ivcl_fast.data.store.placement import Placement, choose_placement
from ivcl_fast.data.store.shards import checksum, read_index
from ivcl_fast.data.store.table import Index, Strings
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

OPEN_SHARDS = 512
"""Largest number of open shards; the system limits the open files of a process."""
PLACES = {"disk": "on disk", "ram": "in memory", "gpu": "in GPU memory"}


class FrameStore:
    """An open frame store.

    Opening checks the version and the length of every shard; :meth:`verify` checks the frames. From
    disk, frames are read on demand, and all readers of a machine share the system's cache. In RAM,
    every reader holds a copy. On a GPU, batches are gathered from a tensor.

    Example::

        >>> store = FrameStore(Path("all_actions/store-64-p8-pyav"))
        >>> store.rows("CATER_new_000123", [0, 150, 300]).shape
        (3, 64, 192)
    """

    def __init__(
        self,
        path: str | Path,
        placement: Placement = "disk",
        device: torch.device | None = None,
        step_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Open the store at ``path``, which may be a URL.

        Args:
            placement: ``disk``, ``ram``, ``gpu``, or ``auto``: the fastest place with enough room.
            device: device for training, where ``gpu`` places the store.
            step_bytes: returns the memory of a training step, which ``auto`` leaves free.

        Raises:
            UserError: the folder is not a complete store, or there is no device for ``gpu``.
        """
        self.path = local_store(path)
        self._remote = RemoteShards(self.path) if (self.path / ORIGIN).exists() else None
        self.index: Index = read_index(self.path)
        settings: dict[str, Any] = self.index.about["settings"]
        self.image_size: int = settings["image_size"]
        self.patch_size: int = settings["patch_size"]
        self.decoder: str = settings["decoder"]
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.patch_dim = 3 * self.patch_size**2
        self._row = self.num_patches * self.patch_dim
        shards: list[list[Any]] = self.index.about["shards"]
        self._files = [(str(file), int(size), str(sha256)) for file, size, sha256, *_ in shards]
        if self._remote is None:
            self._check_lengths()
        self.bytes: int = sum(size for _, size, _ in self._files)
        """Size of all frames."""
        self.placement, reason = choose_placement(placement, self.bytes, device, step_bytes)
        if placement != "disk":
            where = PLACES[self.placement]
            log.info("store: %s, %.2f GB %s, %s", self.path, self.bytes / 1e9, where, reason)
        self._firsts = np.cumsum([0] + [size // self._row for _, size, _ in self._files])
        """First frame of each shard, counted over all of them."""
        self._rows: torch.Tensor | None = None
        """All frames, uint8 ``[F, N * 3PP]``; None if they are on disk."""
        if self.placement != "disk":
            self._rows = self._load(device if self.placement == "gpu" else None)
        # Opened now, because a build may replace shards while this store is used.
        held = [] if self._remote or self._rows is not None else self._files[:OPEN_SHARDS]
        self._open = [(self.path / file).open("rb", buffering=0) for file, *_ in held]
        for file in self._open:
            weakref.finalize(self, file.close)

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

    def rows(self, name: str, frame_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the patch rows of frames: uint8 ``[T, N, 3PP]``.

        Raises ``IndexError`` for a frame that does not exist, and :class:`UserError` for videos
        that the store does not contain.
        """
        return self.batch([name], [np.asarray(frame_ids)])[0].cpu().numpy()

    def batch(
        self, names: Sequence[str], frame_ids: Sequence[np.ndarray], pin: bool = False
    ) -> torch.Tensor:
        """Read B clips, each given by the name of its video and T frames: uint8 ``[B, T, N, 3PP]``.

        The result is on the device of the store; ``pin`` allocates page-locked memory.
        """
        length = len(frame_ids[0]) if names else 0
        shape = (len(names), length, self.num_patches, self.patch_dim)
        found = zip(self._find(names).tolist(), frame_ids, strict=True)
        places = [self._places(at, ids) for at, ids in found]
        chosen = np.concatenate([np.empty(0, np.int64), *places])
        if self._rows is None:
            batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
            self._read(chosen, batch.view(-1, self._row).numpy())
            return batch
        device = self._rows.device
        to_gpu = pin and device.type == "cuda"
        batch = torch.empty(
            shape, dtype=torch.uint8, device=device, pin_memory=pin and device.type == "cpu"
        )
        ids = torch.from_numpy(chosen)
        ids = ids.pin_memory() if to_gpu else ids  # otherwise the copy would wait for pending steps
        ids = ids.to(device, non_blocking=to_gpu)
        torch.index_select(self._rows, 0, ids, out=batch.view(-1, self._row))
        return batch

    def verify(self) -> None:
        """Compare the checksums of all shards; :class:`UserError` names one that differs."""
        for file, size, sha256 in self._files:
            if checksum(self._here(file, size)) != sha256:
                raise UserError(
                    f"{self.path / file}: damaged: its {size:,} bytes do not match their checksum; "
                    "delete it, and the command that built the store builds it again"
                )

    def _find(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of videos in the index."""
        rows = self.index.find(names)
        for at in np.flatnonzero(rows < 0).tolist():
            reason = self.bad_files.get(names[at], "the store was built without it")
            raise UserError(f"{self.path}: no frames of {names[at]}: {reason}")
        return rows

    def _places(self, row: int, frame_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the positions of a video's frames among those of all shards.

        Raises ``IndexError`` for a frame that does not exist.
        """
        ids, frames = np.asarray(frame_ids, np.int64), self.index.frames[row]
        if ids.size and not 0 <= ids.min() <= ids.max() < frames:
            name = self.index.names[row]
            raise IndexError(f"{name}: expected frames 0 to {frames - 1}, got {ids.tolist()}")
        columns = self.index.columns
        return self._firsts[columns["shard"][row]] + columns["start"][row] // self._row + ids

    def _check_lengths(self) -> None:
        sizes = Folder(self.path).sizes()
        for file, built, _ in self._files:
            if (size := sizes.get(file, 0)) != built:
                raise UserError(
                    f"{self.path / file}: expected {built:,} bytes, got {size:,}; delete it, and "
                    "the command that built the store builds it again"
                )

    def _read(self, places: np.ndarray, out: np.ndarray) -> None:
        """Read frames by their positions among those of all shards."""
        shards = np.searchsorted(self._firsts, places, "right") - 1
        starts = (places - self._firsts[shards]) * self._row
        far = list[tuple[np.ndarray, str, int]]()
        for number, start, row in zip(shards.tolist(), starts.tolist(), out, strict=True):
            name, size, _ = self._files[number]
            if self._remote and not (self.path / name).exists():
                self._remote.copy_later(name, size)
                far.append((row, name, start))
            elif self._pread(number, row, start) < self._row:
                raise UserError(f"{self.path / name}: ends before its last frame")
        if self._remote and far:
            parts = self._remote.read([(name, at, at + self._row) for _, name, at in far])
            for (row, *_), part in zip(far, parts, strict=True):
                row[:] = np.frombuffer(part, np.uint8)

    def _pread(self, number: int, row: np.ndarray, start: int) -> int:
        if number < len(self._open):
            return os.preadv(self._open[number].fileno(), [row.data], start)
        path = self.path / self._files[number][0]
        try:
            with path.open("rb", buffering=0) as file:
                return os.preadv(file.fileno(), [row.data], start)
        except FileNotFoundError:
            raise UserError(f"{path}: was deleted; start the command again") from None

    def _load(self, device: torch.device | None) -> torch.Tensor:
        """Load the entire store into memory, shard by shard."""
        whole = torch.empty(int(self._firsts[-1]), self._row, dtype=torch.uint8, device=device)
        for number, (file, size, _) in enumerate(self._files):
            shard = np.fromfile(self._here(file, size), np.uint8).reshape(-1, self._row)
            whole[self._firsts[number] : self._firsts[number + 1]] = torch.from_numpy(shard)
        return whole

    def _here(self, file: str, size: int) -> Path:
        """Return the path of a shard, which is copied first if it is in object storage."""
        if self._remote:
            self._remote.fetch(file, size)
        return self.path / file
