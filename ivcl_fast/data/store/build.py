"""Builds a frame store from the videos of a data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from ivcl_fast.data.dataset import Media, summary
from ivcl_fast.data.decode.decoder import DecoderName, default_workers, resolve_decoder
from ivcl_fast.data.decode.media import Square
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.ray_pool import RayPool
from ivcl_fast.data.store.shards import BAD_FILES, GONE, Build, Part, Progress, Source, VideoSource
from ivcl_fast.data.store.table import INDEX, Index, decoded, read_index
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify

log = logging.getLogger(__name__)

Engine = Literal["local", "ray"]


def default_store_path(
    root: Path,
    image_size: int,
    patch_size: int,
    decoder: DecoderName | Literal["drawn"] = "auto",
    task: str | None = None,
    crop: Square = "none",
) -> Path:
    """Return the default folder of a data set's store; ``task``: if each has separate media."""
    made_by = "drawn" if decoder == "drawn" else resolve_decoder(decoder)
    parts = ["store", image_size, f"p{patch_size}", made_by]
    parts += [] if crop == "none" else [crop]
    parts += [] if task is None else [task]
    return Path(root) / "-".join(map(str, parts))


def find_store(
    root: Path, sizes: tuple[int, int], decoder: DecoderName, **named: Any
) -> tuple[Path, DecoderName]:
    """Return the folder of a data set's store and the decoder to build or open it with.

    If ``auto`` selects DALI but only PyAV has built a store, for example on a machine without a
    GPU, that store is used. ``named``: task and crop for :func:`default_store_path`.
    """
    out = default_store_path(root, *sizes, decoder, **named)
    other = default_store_path(root, *sizes, "pyav", **named)
    if decoder == "auto" and not (out / INDEX).exists() and (other / INDEX).exists():
        log.info("store: using %s, built by PyAV; --decoder dali builds another", other)
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
    device: torch.device | None = None,
    crop: Square = "none",
    engine: Engine = "local",
) -> FrameStore:
    """Decode every frame of videos into a store at ``out``, or open the store if it exists.

    Videos that cannot be used are left out, logged, and listed with the reason in
    ``bad_files.json``. An interrupted build continues. If videos were added, changed or removed,
    only the shards with such videos are replaced. Processes that need the same store (such as the
    ranks of torchrun, on one or several machines) build it together.

    Args:
        source: videos, or another :class:`~ivcl_fast.data.store.shards.Source` of frames.
        image_size: height and width that frames are resized to; a multiple of ``patch_size``.
        decoder: ``auto``, ``dali`` or ``pyav``.
        workers: number of processes; by default one per CPU, or per NVDEC. With 1 this process
            decodes. The number does not affect the store.
        progress: called with (videos done, videos in total) when shards are complete.
        crop: part of each frame to use; by default the whole frame.
        device: where DALI decodes, if it is a GPU.
        engine: ``local`` for processes of this machine, ``ray`` for the CPUs of a Ray cluster.

    Raises:
        UserError: ``out`` contains a store with other settings, a store that has lost more than
            half of its videos, or other files; or a worker process died.
        OSError: ``out`` cannot be written, or the disk is full.

    Example::

        >>> store = build_store(dataset.media(), Path("store"), image_size=64, patch_size=8)
        >>> store.rows("CATER_new_000123", [0, 1]).shape
        (2, 64, 192)
    """
    if isinstance(source, Sequence):
        source = VideoSource(source, decoder, crop, device)
    build_part(Part(0, 1), source, out, (image_size, patch_size), workers, progress, engine)
    store = FrameStore(out)
    if store.bad_files:
        total = len(store.index) + len(store.bad_files)
        log.warning(summary(store.bad_files, total, store.path / BAD_FILES))
    return store


def build_part(
    part: Part,
    source: Source,
    out: Path,
    sizes: tuple[int, int],
    workers: int | None = None,
    progress: Progress | None = None,
    engine: Engine = "local",
) -> int:
    """Build a part of a store, without waiting for other parts; see :func:`build_store`.

    Parts may run at the same time on machines that share the folder. ``sizes``: of images and
    patches.

    Returns the number of videos that other parts have yet to decode; the part for which it is 0
    completes the store.
    """
    image_size, patch_size = sizes
    settings: dict[str, Any] = {
        "image_size": image_size, "patch_size": patch_size, "crop": source.crop,
        "decoder": source.decoder,
    }  # fmt: skip
    found = read_index(out) if (out / INDEX).exists() else None
    if found is not None:
        before = found.about["settings"]
        for key, value in settings.items():
            if before[key] != value:
                raise UserError(f"{out}: expected a store with {key} {value}, got {before[key]}")
    build = Build(source, out, settings, append_frames)
    if found is not None:
        if build.is_current(found):
            return 0
        check_clips(out, found, source)
    count = workers or default_workers("dali" if source.decoder == "dali" else "pyav")
    with RayPool() if engine == "ray" else WorkerPool(count) as pool:
        return build.run(part, pool, progress or (lambda *_: None))


def check_clips(folder: Path, index: Index, source: Source) -> None:
    """Raise :class:`UserError` if most of the clips of a store no longer exist."""
    known = set(source.names)
    gone = sum(
        name not in known or source.state(name) == GONE for name in map(decoded, index.names)
    )
    if gone > len(index) / 2:
        raise UserError(
            f"{folder}: contains a store of other videos ({gone} of its {len(index)} are missing); "
            f"choose another folder, or train without the videos: --data store:{folder}"
        )


def append_frames(
    source: Source, name: str, settings: dict[str, Any], file: BinaryIO
) -> tuple[int, str]:
    """Append a clip's patch rows to its shard: an :data:`~ivcl_fast.data.store.shards.Append`."""
    count = 0
    for part in source.frames(name, settings["image_size"]):
        rows = patchify(part, settings["patch_size"]).contiguous().numpy()
        file.write(rows.data)
        count += len(rows)
    return count, json.dumps({"fps": source.fps(name)})
