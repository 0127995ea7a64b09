"""The frame store: every frame of a data set's media, decoded once, as patch rows.

A store is a folder::

    meta.json         version, sizes, crop, decoder, digest of the media, length and sha256 of the
                      other files, and its own sha256
    index.json        media -> [shard, first frame in it, number of frames]
    bad_files.json    media -> reason why they are not in the store
    sources.json      media -> state of their files, see :mod:`ivcl_fast.data.store.sources`
    shard-00000.u8    uint8 [frames, N, 3PP], one after another

Reading a patch of a frame is one contiguous read. ``meta.json`` is written last. A folder without
it is an unfinished build, which :func:`~ivcl_fast.data.store.build.build_store` continues.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivcl_fast.data.store.mapping import map_file, read_ahead
from ivcl_fast.data.store.placement import Placement, choose_placement
from ivcl_fast.data.store.shards import META
from ivcl_fast.data.store.sources import SOURCES, read_sources
from ivcl_fast.errors import UserError
from ivcl_fast.files import errors_name, read_bytes, write_text
from ivcl_fast.manifest import check_signed, signed

log = logging.getLogger(__name__)

VERSION = 2
INDEX, BAD_FILES = "index.json", "bad_files.json"
READ_AHEAD_BYTES = 2**16
"""Size of a frame from which it pays to announce that it will be read."""
PLACES = {"disk": "on disk", "ram": "in memory", "gpu": "in GPU memory"}


class FrameStore:
    """An open frame store.

    Opening checks the version, the length of every file and the contents of the small files;
    :meth:`verify` checks the contents of all files. On disk, shards are memory maps, which all
    readers of a machine share; in RAM, every reader has its own copy; on a GPU, the store is a
    tensor, from which batches are gathered.

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
        meta = read_meta(self.path)
        self.image_size: int = meta["image_size"]
        self.patch_size: int = meta["patch_size"]
        self.decoder: str = meta["decoder"]
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.patch_dim = 3 * self.patch_size**2
        self._files: dict[str, dict[str, Any]] = meta["files"]
        self._check_lengths()
        self._index: dict[str, list[int]] = read_small(self.path, meta, INDEX)
        self.bad_files: dict[str, str] = read_small(self.path, meta, BAD_FILES)
        self.names = list(self._index)
        self._shard_names = [name for name in self._files if name not in (INDEX, BAD_FILES)]
        self.bytes: int = sum(self._files[name]["bytes"] for name in self._shard_names)
        """Size of all frames."""
        self.placement, reason = choose_placement(placement, self.bytes, device, step_bytes)
        if self.placement == "gpu" and device is None:
            raise UserError("placement: gpu needs a device; accepted without one: auto, disk, ram")
        if placement != "disk":
            where = PLACES[self.placement]
            log.info("store: %s, %.2f GB %s, %s", self.path, self.bytes / 1e9, where, reason)
        self._on_device = self._load(device) if self.placement == "gpu" else None
        self._shards = [self._open_shard(n) for n in self._shard_names if self._on_device is None]

    def num_frames(self, name: str) -> int:
        """Return the number of frames of media."""
        return self._entry(name)[2]

    def rows(
        self, name: str, frame_ids: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read the patch rows of frames: uint8 ``[T, N, 3PP]``, in ``out`` if it is given.

        Raises ``IndexError`` for a frame that does not exist, and :class:`UserError` for media that
        the store does not contain.
        """
        if self._on_device is not None:
            rows = self.batch([name], [np.asarray(frame_ids)])[0].cpu().numpy()
            if out is None:
                return rows
            out[...] = rows
            return out
        number, places = self._places(name, frame_ids)
        shard = self._shards[number]
        if self.placement == "disk" and shard.strides[0] >= READ_AHEAD_BYTES:
            read_ahead(shard, places)
        # The places are checked; "clip" avoids the buffer that NumPy needs for "raise" with out.
        return np.take(shard, places, 0, out, mode="clip")

    def batch(
        self, names: Sequence[str], frame_ids: Sequence[np.ndarray], pin: bool = False
    ) -> torch.Tensor:
        """Read B clips, each given by the name of its media and T frames: uint8 ``[B, T, N, 3PP]``.

        The result is on the device of the store; ``pin`` allocates page-locked memory.
        """
        length = len(frame_ids[0]) if names else 0
        shape = (len(names), length, self.num_patches, self.patch_dim)
        if self._on_device is not None:
            wanted = [self._places(*clip) for clip in zip(names, frame_ids, strict=True)]
            rows = [self._shard_starts[shard] + places for shard, places in wanted]
            chosen = torch.from_numpy(np.concatenate(rows))
            if pin:  # otherwise the copy would wait for pending steps
                chosen = chosen.pin_memory()
            chosen = chosen.to(self._on_device.device, non_blocking=pin)
            return self._on_device.index_select(0, chosen).view(shape)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        for name, ids, out in zip(names, frame_ids, batch.numpy(), strict=True):
            self.rows(name, ids, out)
        return batch

    def verify(self) -> None:
        """Compare the checksums of all files; :class:`UserError` names a file that differs."""
        for name in self._files:
            if file_digest(self.path / name) != self._files[name]["sha256"]:
                raise _changed(self.path / name)
        try:
            read_sources(self.path)
        except ValueError:
            raise _changed(self.path / SOURCES) from None

    def _places(self, name: str, frame_ids: Sequence[int] | np.ndarray) -> tuple[int, np.ndarray]:
        """Return the shard of media, and where frames, which have to exist, are in it."""
        shard, first, frames = self._entry(name)
        ids = np.asarray(frame_ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < frames:
            raise IndexError(f"{name}: has frames 0 to {frames - 1}, not all of {ids.tolist()}")
        return shard, first + ids

    def _entry(self, name: str) -> list[int]:
        try:
            return self._index[name]
        except KeyError:
            reason = self.bad_files.get(name, "the store was built without it")
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

    def _open_shard(self, name: str) -> np.ndarray:
        path, shape = self.path / name, (-1, self.num_patches, self.patch_dim)
        content = map_file(path) if self.placement == "disk" else np.fromfile(path, np.uint8)
        return content.reshape(shape)

    def _load(self, device: torch.device | None) -> torch.Tensor:
        """Load the entire store to the device, shard by shard."""
        row = self.num_patches * self.patch_dim
        starts = np.cumsum([0] + [self._files[n]["bytes"] // row for n in self._shard_names])
        self._shard_starts = starts.tolist()
        whole = torch.empty(self._shard_starts[-1], row, dtype=torch.uint8, device=device)
        for name, first, end in zip(self._shard_names, starts[:-1], starts[1:], strict=True):
            shard = np.fromfile(self.path / name, np.uint8).reshape(-1, row)
            whole[first:end] = torch.from_numpy(shard)
        return whole


def read_meta(path: Path) -> dict[str, Any]:
    """Read ``meta.json`` of a store; :class:`UserError` if it is missing, changed or too old."""
    file = path / META
    try:
        text = read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: is not a frame store, or its build is not finished") from None
    try:
        version = json.loads(text)["version"]
        if version == VERSION:
            return check_signed(text)
    except (ValueError, KeyError, TypeError):
        raise _changed(file) from None
    raise UserError(
        f"{path}: is a store of version {version}, and version {VERSION} is needed; "
        "delete it and build it again"
    )


def read_small(store: Path, meta: Mapping[str, Any], name: str) -> Any:
    """Read a JSON file of a store; :class:`UserError` if it is not as it was built."""
    content = read_bytes(store / name)
    if hashlib.sha256(content).hexdigest() != meta["files"][name]["sha256"]:
        raise _changed(store / name)
    return json.loads(content)


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json`` of a store, which finishes the store."""
    write_text(path / META, signed(meta))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with errors_name(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path}: its contents changed since it was built; delete the store and build it again"
    )
