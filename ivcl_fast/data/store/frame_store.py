"""The frame store: every frame of a data set's videos, decoded once, as patch rows.

A store is a folder::

    index.safetensors      settings; for each video its number of frames and the first of them
    labels-<task>.safetensors   clips and labels of a task, see :mod:`ivcl_fast.data.store.labels`
    bad_files.json         videos that cannot be used -> reason
    shard-*.u8             uint8 [frames, N, 3PP]
    shard-*.json           for the next build, see :mod:`ivcl_fast.data.store.shards`

Reading a patch of a frame is one contiguous read. The index is written last. A folder without it is
an unfinished build, which :func:`~ivcl_fast.data.store.build.build_store` continues.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivcl_fast.data.store.remote import ORIGIN, RemoteStore
from ivcl_fast.data.store.table import decoded, encoded, read_index
from ivcl_fast.errors import UserError
from ivcl_fast.files import sha256

log = logging.getLogger(__name__)

OPEN_SHARDS = 512
"""Largest number of open shards; the system limits the open files of a process."""


class FrameStore:
    """An open frame store.

    Opening checks the version and the length of every shard; :meth:`verify` checks the frames.
    Frames are read on demand, and all readers of a machine share the system's cache.

    Example::

        >>> store = FrameStore(Path("all_actions/store-64-p8-pyav"))
        >>> store.rows("CATER_new_000123", [0, 150, 300]).shape
        (3, 64, 192)
    """

    def __init__(self, path: Path) -> None:
        """Open the store in the folder; raises :class:`UserError` unless it is complete."""
        self.path = Path(path)
        self.index = read_index(self.path)
        settings: dict[str, Any] = self.index.about["settings"]
        self.image_size: int = settings["image_size"]
        self.patch_size: int = settings["patch_size"]
        self.decoder: str = settings["decoder"]
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.patch_dim = 3 * self.patch_size**2
        self._row = self.num_patches * self.patch_dim
        self._checksums: dict[str, str] = {}
        """Checksum of each shard by the name of its file."""
        self._remote: RemoteStore | None = None
        """Object storage with the shards that are not on this machine; None for a local store."""
        if (self.path / ORIGIN).exists():
            self._remote = RemoteStore((self.path / ORIGIN).read_text())
        with os.scandir(self.path) as entries:
            found = {one.name: one.stat().st_size for one in entries if one.name.endswith(".u8")}
        sizes = [0]
        for shard, size, checksum in self.index.about["shards"]:
            name = f"{shard}.u8"
            if found.get(name) != size and (name in found or not self._remote):
                raise UserError(
                    f"{self.path / name}: expected {size:,} bytes, got {found.get(name, 0):,}; "
                    "delete it, and the command that built the store builds it again"
                )
            self._checksums[name] = checksum
            sizes.append(size)
        self._files = list(self._checksums)
        self.bytes = sum(sizes)
        """Size of all frames."""
        self._firsts = np.cumsum(sizes) // self._row
        """First frame of each shard, counted over all of them."""
        self._open: list[Any] = []
        missing = [name for name in self._files if name not in found]
        if self._remote and missing:
            self._remote.download_later(missing)
        else:  # now, because a build may replace shards while this store is used
            names = self._files[:OPEN_SHARDS]
            self._open = [(self.path / name).open("rb", buffering=0) for name in names]
            for opened in self._open:
                weakref.finalize(self, opened.close)

    @property
    def names(self) -> list[str]:
        """Names of the videos, sorted."""
        return [decoded(name) for name in self.index.names]

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
        return self.batch([name], [np.asarray(frame_ids)])[0].numpy()

    def batch(
        self, names: Sequence[str], frame_ids: Sequence[np.ndarray], pin: bool = False
    ) -> torch.Tensor:
        """Read B clips, each given by the name of its video and T frames: uint8 ``[B, T, N, 3PP]``.

        ``pin`` allocates page-locked memory.
        """
        length = len(frame_ids[0]) if names else 0
        shape = (len(names), length, self.num_patches, self.patch_dim)
        found = zip(self._find(names).tolist(), frame_ids, strict=True)
        places = [self._places(at, ids) for at, ids in found]
        chosen = np.concatenate([np.empty(0, np.int64), *places])
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        self._read(chosen, batch.view(-1, self._row).numpy())
        return batch

    def verify(self) -> None:
        """Compare the checksums of all shards; :class:`UserError` names one that differs."""
        for name, checksum in self._checksums.items():
            if sha256(file := self.path / name) != checksum:
                raise UserError(
                    f"{file}: damaged: its content does not match its checksum; delete it, and the "
                    "command that built the store builds it again"
                )

    def _find(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of videos in the index."""
        rows = self.index.find(encoded(names))
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
            name = decoded(self.index.names[row])
            raise IndexError(f"{name}: expected frames 0 to {frames - 1}, got {ids.tolist()}")
        return self.index.columns["first"][row] + ids

    def _read(self, places: np.ndarray, out: np.ndarray) -> None:
        """Read frames by their positions among those of all shards."""
        shards = np.searchsorted(self._firsts, places, "right") - 1
        starts = (places - self._firsts[shards]) * self._row
        far = list[tuple[np.ndarray, tuple[str, int, int]]]()
        for number, start, row in zip(shards.tolist(), starts.tolist(), out, strict=True):
            if number < len(self._open):
                count = os.preadv(self._open[number].fileno(), [row.data], start)
            else:
                file = self.path / self._files[number]
                if self._remote and not file.exists():
                    far.append((row, (file.name, start, start + self._row)))
                    continue
                with file.open("rb", buffering=0) as opened:
                    count = os.preadv(opened.fileno(), [row.data], start)
            if count < self._row:
                raise UserError(f"{self.path / self._files[number]}: ends before its last frame")
        if self._remote and far:
            for (row, _), part in zip(far, self._remote.read([at for _, at in far]), strict=True):
                row[:] = np.frombuffer(part, np.uint8)
