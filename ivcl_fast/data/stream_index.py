"""The index that streaming keeps beside a data set: what its media contain, and where.

``index.json`` describes the media, ``places.npy`` locates the frames of Motion-JPEG videos. Both
are checked when they are read, and made again if they are damaged. Media that were added or whose
files changed are probed, no others. An index of the media as they are is read without writing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from ivcl_fast.data.bad_files import summary
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.indexed import Indexed, index_one
from ivcl_fast.data.decode.media import VideoInfo
from ivcl_fast.data.store.index import check_names, probe_media
from ivcl_fast.data.store.sources import state_of
from ivcl_fast.data.workers import STALL_SECONDS, WorkerPool
from ivcl_fast.files import atomic_write, locked, read_bytes, write_json

log = logging.getLogger(__name__)

INDEX, PLACES, BAD_FILES = "index.json", "places.npy", "bad_files.json"
FORMAT = 3
"""Version of the index; since 3, frames of AVI files that repeat one are counted."""


def saved_index(
    media: Sequence[Media],
    folder: Path,
    workers: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[dict[str, Indexed], dict[str, str]]:
    """Index media, and keep the index and ``bad_files.json`` in ``folder``, or read the index.

    Returns what the usable media contain, by name, and the reasons for the others. Several
    processes may call it at the same time. ``progress`` is called with (media done, media in
    total).
    """
    check_names(media)
    states = {one.name: state_of(one) for one in media}
    known, bad_files, before = _read(folder, log.debug)  # another rank may be writing it
    if before != states:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "index.lock", busy="written"):  # so that only one rank probes media
            known, bad_files = _updated(media, states, folder, workers, progress)
    if bad_files:
        log.warning(summary(bad_files, len(media), folder / BAD_FILES))
    return known, bad_files


def _updated(
    media: Sequence[Media],
    states: Mapping[str, str],
    folder: Path,
    workers: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Indexed], dict[str, str]]:
    """Probe what has changed and write the index, unless another rank has just done so."""
    known, bad_files, before = _read(folder, log.warning)
    if before == states:
        return known, bad_files
    todo = [one for one in media if before.get(one.name) != states[one.name]]
    done = len(media) - len(todo)

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress(done, len(media))

    with WorkerPool(workers, STALL_SECONDS) as pool:
        probed, bad = probe_media(todo, pool, index_one, report)
    changed = {one.name for one in todo}
    probed |= {name: one for name, one in known.items() if name not in changed}
    bad |= {name: why for name, why in bad_files.items() if name not in changed}
    known = {name: probed[name] for name in states if name in probed}
    bad_files = {name: bad[name] for name in states if name in bad}
    _write(folder, states, known, bad_files)
    return known, bad_files


def _write(
    folder: Path,
    states: Mapping[str, str],
    media: Mapping[str, Indexed],
    bad_files: Mapping[str, str],
) -> None:
    places = [one.places for one in media.values() if one.places is not None]
    content = io.BytesIO()
    np.save(content, np.concatenate(places) if places else np.empty((0, 2), np.int64))
    with atomic_write(folder / PLACES) as file:
        file.write(content.getbuffer())
    write_json(folder / BAD_FILES, bad_files)
    found: dict[str, Any] = {
        "format": FORMAT,
        "states": dict(states),
        "places": hashlib.sha256(content.getbuffer()).hexdigest(),
        "located": [name for name, one in media.items() if one.places is not None],
        "media": {name: astuple(one.info) for name, one in media.items()},
        "bad_files": dict(bad_files),
    }
    write_json(folder / INDEX, found | {"sha256": _digest(found)})


def _read(
    folder: Path, report: Callable[..., None]
) -> tuple[dict[str, Indexed], dict[str, str], dict[str, str]]:
    """Read the index, and the states of the files of all media; nothing if it is damaged or old."""
    try:
        found = json.loads(read_bytes(folder / INDEX))
        states: dict[str, str] = found["states"]
        if found.pop("sha256") != _digest(found):
            raise ValueError("the checksum differs")
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']}, not {FORMAT}")
        content = read_bytes(folder / PLACES)
        if found["places"] != hashlib.sha256(content).hexdigest():
            raise ValueError(f"the checksum of {PLACES} differs")
    except FileNotFoundError:
        return {}, {}, {}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        report("%s: indexing again, the index is damaged or old: %s", folder, error)
        return {}, {}, {}
    infos = {name: VideoInfo(*info) for name, info in found["media"].items()}
    media = {name: Indexed(info) for name, info in infos.items()}
    places, first = np.load(io.BytesIO(content), allow_pickle=False), 0
    for name in found["located"]:
        end = first + infos[name].frames
        media[name] = Indexed(infos[name], places[first:end])
        first = end
    return media, found["bad_files"], states


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
