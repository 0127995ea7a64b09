"""The index that streaming keeps beside a data set: what its videos contain, and where.

``index.safetensors`` also locates the frames of Motion-JPEG videos. Videos that were added or whose
files changed are probed, no others. An index of the videos as they are is read without writing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ivcl_fast.data.bad_files import named, summary
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.indexed import Indexed, index_one
from ivcl_fast.data.decode.info import VideoInfo
from ivcl_fast.data.store.source import State, state_of, unchanged
from ivcl_fast.data.store.table import Columns, Index
from ivcl_fast.data.workers import STALL_SECONDS, WorkerPool, time_limit
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, write_json

log = logging.getLogger(__name__)

INDEX, BAD_FILES = "index.safetensors", "bad_files.json"
VERSION = 3
MIN_RATE = 2**20
"""Bytes per second; slower storage is considered hung."""

Found = TypeVar("Found")
Progress = Callable[[int, int], None]


def saved_index(
    media: Sequence[Media],
    folder: Path,
    workers: int,
    progress: Progress = lambda *_: None,
) -> Index:
    """Index media, and keep the index and ``bad_files.json`` in ``folder``, or read the index.

    Several processes may call it at the same time. ``progress`` is called with (media done, media
    in total). Raises :class:`UserError` if there are no media, or two with the same name.
    """
    if not media:
        raise UserError("the data set has no videos")
    states = {one.name: state_of(one) for one in media}
    if len(states) < len(media):
        raise UserError("two videos have the same name")
    index = _read(folder, log.debug)  # another rank may be writing it
    if index is None or not _is_current(index, states):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "index.lock", busy="written"):  # so that only one rank probes media
            index = _read(folder, log.warning)
            if index is None or not _is_current(index, states):
                index = _updated(index, media, states, folder, workers, progress)
    if index.bad_files:
        log.warning(summary(index.bad_files, len(media), folder / BAD_FILES))
    return index


def indexed_media(index: Index, row: int) -> Indexed:
    """Return what media contain, from their row."""
    columns, codecs = index.columns, index.about["codecs"]
    width, height, codec, rotation, mirrored = columns["info"][row].tolist()
    info = VideoInfo(
        int(index.frames[row]), float(columns["fps"][row]), codecs[codec], width, height, rotation,
        bool(mirrored),
    )  # fmt: skip
    start, end = columns["places_end"][row : row + 2].tolist()
    return Indexed(info, columns["places"][start:end] if end > start else None)


def probe_media(
    media: Sequence[Media],
    pool: WorkerPool,
    probe: Callable[[Media], Found],
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Found], dict[str, str]]:
    """Return what ``probe`` returns for each of the media, and why the others cannot be used.

    ``progress`` is called with the number of media that are done.
    """
    log.info("probing %d videos", len(media))
    found = dict[str, Any]()
    tasks = (ProbeTask(one) for one in media)
    for number, (name, info) in enumerate(pool.run(partial(_probe, probe), tasks, _after_loss), 1):
        found[name] = info
        progress(number)
    ordered = {one.name: found[one.name] for one in media}
    usable = {name: info for name, info in ordered.items() if not isinstance(info, str)}
    infos = {name: getattr(found, "info", found) for name, found in usable.items()}
    odd = {name: info.warning for name, info in infos.items() if getattr(info, "warning", "")}
    if odd:
        log.warning("%d videos are kept although they look odd:\n%s", len(odd), named(odd))
    return usable, {name: why for name, why in ordered.items() if isinstance(why, str)}


@dataclass(frozen=True)
class ProbeTask:
    """Media for a worker to probe."""

    media: Media
    losses: int = 0
    """Number of workers that were lost over them."""
    refusal: str = ""
    """Reason not to open them."""


def _probe(probe: Callable[[Media], Any], task: ProbeTask) -> tuple[str, Any]:
    media = task.media
    try:
        if task.refusal:
            raise VideoError(task.refusal)
        sizes = (path.stat().st_size for path in media.files if os.path.isfile(path))
        with time_limit(STALL_SECONDS + sum(sizes) / MIN_RATE):
            return media.name, probe(media)
    except VideoError as error:
        return media.name, str(error)


def _after_loss(task: ProbeTask, reason: str) -> ProbeTask:
    log.warning("%s: probing it failed: %s", task.media.files[0], reason)
    refusal = f"probing it failed twice: {reason}; touch the file to try again"
    return ProbeTask(task.media, task.losses + 1, refusal if task.losses else "")


def _updated(
    index: Index | None,
    media: Sequence[Media],
    states: Mapping[str, State],
    folder: Path,
    workers: int,
    progress: Progress,
) -> Index:
    """Probe what has changed, and write the index."""
    known, bad = dict[str, Indexed](), dict[str, str]()
    if index is not None:
        same = _unchanged(index, states)
        rows = index.find(states)
        known = {
            name: indexed_media(index, row)
            for name, row in zip(states, rows.tolist(), strict=True)
            if name in same and row >= 0
        }
        bad = {name: why for name, why in index.bad_files.items() if name in same}
    todo = [one for one in media if one.name not in known and one.name not in bad]
    done = len(media) - len(todo)
    with WorkerPool(workers) as pool:
        probed, refused = probe_media(
            todo, pool, index_one, lambda count: progress(done + count, len(media))
        )
    made = _make({name: one for name in states if (one := (known | probed).get(name))},
                 bad | refused, states)  # fmt: skip
    write_json(folder / BAD_FILES, made.bad_files)
    made.write(folder / INDEX)
    return made


def _make(
    media: Mapping[str, Indexed], bad: Mapping[str, str], states: Mapping[str, State]
) -> Index:
    infos = [one.info for one in media.values()]
    codecs = sorted({info.codec for info in infos})
    places = [np.empty((0, 2), np.int64) if m.places is None else m.places for m in media.values()]
    numbers = [
        (info.width, info.height, codecs.index(info.codec), info.rotation, info.mirrored)
        for info in infos
    ]
    columns: Columns = {
        "frames": np.array([info.frames for info in infos], np.int32),
        "fps": np.array([info.fps for info in infos], np.float64),
        "info": np.array(numbers, np.int32).reshape(-1, 5),
        "state": np.array([states[name] for name in media], np.int64).reshape(-1, 2),
        "places": np.concatenate(places) if places else np.empty((0, 2), np.int64),
        "places_end": np.cumsum([0, *map(len, places)], dtype=np.int64),
    }
    refused = {name: (bad[name], *states[name]) for name in states if name in bad}
    about = {"version": VERSION, "codecs": codecs, "bad_files": refused}
    return Index.make(media, columns, about)


def _is_current(index: Index, states: Mapping[str, State]) -> bool:
    total = len(index) + len(index.bad_files)
    return len(states) == total and len(_unchanged(index, states)) == total


def _unchanged(index: Index, states: Mapping[str, State]) -> set[str]:
    """Return the media whose files are as they were."""
    rows = index.find(states)
    then = np.full((len(states), 2), -1, np.int64)
    then[rows >= 0] = index.columns["state"][rows[rows >= 0]]
    bad = index.about["bad_files"]
    for at, name in enumerate(states):
        if name in bad:
            then[at] = bad[name][1:]
    same = unchanged(np.array(list(states.values()), np.int64), then)
    return {name for name, is_same in zip(states, same.tolist(), strict=True) if is_same}


def _read(folder: Path, report: Callable[..., None]) -> Index | None:
    """Read the index; None if there is none, or it is damaged or of another version."""
    try:
        index = Index.read(folder / INDEX)
        if index.about["version"] != VERSION:
            raise ValueError("its version differs")
        return index
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        report("%s: indexing again: %s", folder / INDEX, error)
        return None
