"""The index of a data set: every file is probed once, and bad files are listed with the reason."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.store.sources import digest_of
from ivcl_fast.data.workers import MAX_TIMEOUT, Lost, Report, WorkerPool
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

Found = TypeVar("Found")

PROBE_CHUNK = 64
"""Number of media in a task of a worker."""
MIN_RATE = 2**20
"""Bytes per second; slower storage is taken to hang."""


@dataclass(frozen=True)
class ProbeTask:
    """Media for one worker to probe."""

    media: tuple[Media, ...]
    probe: Callable[[Media], Any]
    refused: dict[str, str] = field(default_factory=dict)
    """Media that are not opened, with the reason."""


def probe_each(task: ProbeTask, report: Report) -> dict[str, Any]:
    """Probe media; returns for each the reason if it cannot be used, and reports each."""
    found: dict[str, Any] = {}
    for media in task.media:
        try:
            found[media.name] = task.refused.get(media.name) or task.probe(media)
        except VideoError as error:
            found[media.name] = str(error)
        report(1)
    return found


def probe_media(
    media: Sequence[Media],
    pool: WorkerPool,
    probe_one: Callable[[Media], Found],
    report: Report = lambda _: None,
) -> tuple[dict[str, Found], dict[str, str]]:
    """Return what ``probe_one`` does for each of the media, and why the others cannot be used.

    ``report`` is called with numbers of media. From now on, ``pool`` gives a worker the time to
    read the largest file.
    """
    log.info("probing %d videos", len(media))
    pool.stall_seconds = max(pool.stall_seconds, reading_timeout(media))
    tasks = [
        ProbeTask(tuple(media[i : i + PROBE_CHUNK]), probe_one)
        for i in range(0, len(media), PROBE_CHUNK)
    ]
    parts = pool.run(probe_each, tasks, report, SecondChance())
    found = {name: info for part in parts for name, info in part.items()}
    ordered = {one.name: found[one.name] for one in media}
    usable = {name: info for name, info in ordered.items() if not isinstance(info, str)}
    return usable, {name: why for name, why in ordered.items() if isinstance(why, str)}


def reading_timeout(media: Sequence[Media]) -> float:
    """Return how many seconds to wait for a worker that reads any one of the media."""
    sizes = (path.stat().st_size for one in media for path in one.files if os.path.isfile(path))
    return min(MAX_TIMEOUT, max(sizes, default=0) / MIN_RATE)


def check_names(media: Sequence[Media]) -> None:
    """Raise :class:`UserError` if there are no media, or two with the same name."""
    if not media:
        raise UserError("the data set has no videos")
    seen: set[str] = set()
    for one in media:
        if one.name in seen:
            raise UserError(f"{one.files[0]}: two videos have the name {one.name}")
        seen.add(one.name)


def source_digest(media: Sequence[Media]) -> str:
    """Compute a digest of the names, the order and the lengths of the files.

    Raises :class:`UserError` if there are no media, or two with the same name.
    """
    check_names(media)
    sizes = {
        one.name: [path.stat().st_size if os.path.isfile(path) else -1 for path in one.files]
        for one in media
    }
    return digest_of(sizes)


class SecondChance:
    """Repeats a task whose worker was lost; the second time, its current media are refused.

    For tasks with ``media`` and ``refused``, whose function reports once after each of the media.
    """

    def __init__(self) -> None:
        self._losses: Counter[str] = Counter()

    def __call__(self, lost: Lost) -> Any:
        at = len(lost.reports)
        if at == len(lost.task.media):
            raise RuntimeError(f"a worker process was lost: {lost.reason}")
        media = lost.task.media[at]
        self._losses[media.name] += 1
        log.warning("%s: decoding it failed: %s", media.files[0], lost.reason)
        if self._losses[media.name] == 1:
            return lost.task
        reason = f"decoding it failed twice: {lost.reason}; touch the file to try again"
        return replace(lost.task, refused=lost.task.refused | {media.name: reason})
