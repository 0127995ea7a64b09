"""The plan of a store's build: what is decoded into which shard, written before any is built.

Where a store or a part of one exists, the plan keeps every shard whose media are unchanged. A shard
with media that changed or are gone is replaced by a new one, and new media come into new shards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from ivcl_fast.data.crop import Square
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import DecoderName, choose_decoders
from ivcl_fast.data.decode.media import probe
from ivcl_fast.data.store.frame_store import BAD_FILES, INDEX, read_meta, read_small
from ivcl_fast.data.store.index import probe_media
from ivcl_fast.data.store.shards import META, Shard, ShardTask, finished_shard, is_finished
from ivcl_fast.data.store.sources import GONE, SOURCES, Source, read_sources, source_of
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, read_bytes, write_text
from ivcl_fast.manifest import check_signed, signed
from ivcl_fast.progress import Bar

log = logging.getLogger(__name__)

CROPS: dict[Square, str] = {
    "none": "none: whole frames",
    "start": "start: the largest square, at the left or at the top",
    "center": "center: the largest square, in the center",
    "end": "end: the largest square, at the right or at the bottom",
}
"""What the settings of a store say of the part of the frames that it holds."""
PLAN, LOCK = "plan.json", "build.lock"


class Built(NamedTuple):
    """What exists of a store."""

    shards: list[Shard]
    bad_files: dict[str, str]
    sources: dict[str, Source]
    """The files of all media, the bad ones included, as they were read."""
    planned: list[str]
    """Names of shards that another process may still build."""


def make_plan(
    media: Sequence[Media],
    out: Path,
    settings: dict[str, Any],
    states: Mapping[str, str],
    decoder: DecoderName,
    pool: WorkerPool,
    gpu: int | None,
    shows_progress: bool,
) -> dict[str, Any] | None:
    """Make the plan, or read it if another process made it from files in the same state.

    Returns None if another process has finished the store in the meantime.
    """
    with locked(out / LOCK, busy="planned"):
        if is_finished(out, settings["state"]):
            return None
        plan = read_plan(out / PLAN) if (out / PLAN).exists() else None
        if plan is not None:
            check_settings(out, plan, settings)
            if plan["state"] == settings["state"]:
                return plan
        built = _built(out, plan, settings, states)
        same = _unchanged(media, states, built, pool)
        kept = [one for one in built.shards if one.frames and one.frames.keys() <= same.keys()]
        done = {name for shard in kept for name in shard.frames}
        bad_files = {name: why for name, why in built.bad_files.items() if name in same}
        todo = [one for one in media if one.name not in done and one.name not in bad_files]
        with Bar("probing", len(todo), "videos") as bar:
            report = bar.add if shows_progress else lambda _: None
            infos, found_bad = probe_media(todo, pool, probe, report) if todo else ({}, {})
        frames = {name: info.frames for name, info in infos.items()}
        if built.shards:
            log.info("%s: keeps %d of %d shards, %d videos are new, changed or beside such ones",
                     out, len(kept), len(built.shards), len(todo))  # fmt: skip
        plan = settings | {
            "frames": frames,
            "decoders": choose_decoders(todo, infos, decoder, gpu),
            "bad_files": bad_files | found_bad,
            "shards": _new_shards(out, frames, built, settings),
            "kept": [asdict(replace(shard, bad_files={}, sources={})) for shard in kept],
            "sources": same | {name: Source(states[name]) for name in found_bad},
        }
        write_text(out / PLAN, signed({"plan": plan}))
        return plan


def read_plan(file: Path) -> dict[str, Any]:
    """Read a plan; raises :class:`UserError` if it is damaged."""
    try:
        text = read_bytes(file)
        plan = json.loads(text)
        if "frames" not in plan:
            plan = check_signed(text)["plan"]  # otherwise of version 0.1.0
        if "shards" not in plan:  # of a version that built all shards at once
            groups = enumerate(_groups(plan["frames"], plan))
            shards = {_shard_name(number): group for number, group in groups}
            plan |= {"state": "", "shards": shards, "kept": [], "sources": {}}
        return plan
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{file}: damaged: {error}; delete {file.parent} to build the store again"
        ) from None


def shard_tasks(
    media: Sequence[Media], out: Path, plan: dict[str, Any], gpu: int | None
) -> list[ShardTask]:
    """Return the tasks of building the plan's new shards."""
    by_name = {one.name: one for one in media}
    square = next(square for square, words in CROPS.items() if words == plan["crop"])
    return [
        ShardTask(
            out / file,
            tuple(by_name[name] for name in group),
            tuple(plan["frames"][name] for name in group),
            tuple(plan["decoders"][name] for name in group),
            plan["image_size"],
            plan["patch_size"],
            gpu,
            square,
            plan["state"],
        )
        for file, group in plan["shards"].items()
    ]


def check_settings(out: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise :class:`UserError` if a store or a plan has other settings; its media may differ."""
    for key, value in settings.items():
        if key not in ("source_digest", "state") and found.get(key, value) != value:
            raise UserError(
                f"{out}: contains a store with {key} {found[key]}, not {value}; delete it or "
                "choose another folder"
            )


def _built(
    out: Path, plan: dict[str, Any] | None, settings: dict[str, Any], states: Mapping[str, str]
) -> Built:
    """Return what exists, of an unfinished plan or of a store.

    Raises :class:`UserError` if it was made from other media.
    """
    if plan is not None and not is_finished(out, plan["state"]):
        shards, bad_files, sources = finished(out, plan)
        known = plan
    elif (out / META).exists():
        known = read_meta(out)
        bad_files = read_small(out, known, BAD_FILES)
        shards = _shards_of(known, read_small(out, known, INDEX))
        try:
            sources = read_sources(out)
        except ValueError as error:
            raise UserError(f"{out / SOURCES}: damaged: {error}; delete {out}") from None
    else:
        return Built([], {}, {}, [])
    names = [name for shard in shards for name in shard.frames]
    if not sources and known["source_digest"] == settings["source_digest"]:
        # Of an older version, which knew names and sizes; bad files are looked at again.
        sources = {name: Source(states[name]) for name in names}
    gone = sum(states.get(name, GONE) == GONE for name in names)
    if gone > len(names) / 2 or (names and not sources):
        why = f"{gone} of its {len(names)} are missing" if gone else "file sizes differ"
        raise UserError(
            f"{out}: contains a store of other videos ({why}); delete it or choose another folder"
        )
    return Built(shards, bad_files, sources, [] if plan is None else [*plan["shards"]])


def finished(
    out: Path, plan: dict[str, Any]
) -> tuple[list[Shard], dict[str, str], dict[str, Source]]:
    """Return the shards of a plan that are finished, and the bad files and sources of all media."""
    shards = [Shard(**kept) for kept in plan["kept"]]
    shards += [shard for file in plan["shards"] if (shard := finished_shard(out / file))]
    bad_files = dict(plan["bad_files"])
    sources = {name: Source(*of_media) for name, of_media in plan["sources"].items()}
    for shard in shards:
        bad_files |= shard.bad_files
        sources |= shard.sources
    return shards, bad_files, sources


def _shards_of(meta: dict[str, Any], index: dict[str, list[int]]) -> list[Shard]:
    files = [file for file in meta["files"] if file not in (INDEX, BAD_FILES)]
    frames: list[dict[str, int]] = [{} for _ in files]
    for name, (number, _, length) in sorted(index.items(), key=lambda item: item[1]):
        frames[number][name] = length
    return [
        Shard(file, **meta["files"][file], frames=of_shard, bad_files={})
        for file, of_shard in zip(files, frames, strict=True)
    ]


def _unchanged(
    media: Sequence[Media], states: Mapping[str, str], built: Built, pool: WorkerPool
) -> dict[str, Source]:
    """Return the media whose files are as they were; reads those whose times differ."""
    same = {name: of for name, of in built.sources.items() if states.get(name) == of.state}
    touched = [
        one
        for one in media
        if one.name not in same
        and one.name not in built.bad_files
        and built.sources.get(one.name, Source("")).content
    ]
    if touched:
        log.info("comparing %d videos, whose times changed, with the store", len(touched))
        now, _ = probe_media(touched, pool, source_of)
        for name, source in now.items():
            if source.content == built.sources[name].content:
                same[name] = Source(states[name], source.content)
    return same


def _new_shards(
    out: Path, frames: Mapping[str, int], built: Built, settings: dict[str, Any]
) -> dict[str, list[str]]:
    """Assign media to shards with new names: those of a replaced shard first, then new ones."""
    left, groups = dict(frames), []
    for shard in built.shards:
        again = {name: left.pop(name) for name in shard.frames if name in left}
        groups += _groups(again, settings)
    groups += _groups(left, settings)
    used = [*built.planned, *(path.name for path in out.glob("shard-[0-9]*.u8"))]
    first = max((int(name[6:-3]) + 1 for name in used if name[6:-3].isdigit()), default=0)
    return {_shard_name(first + number): group for number, group in enumerate(groups)}


def _groups(frames: Mapping[str, int], settings: Mapping[str, Any]) -> list[list[str]]:
    """Divide the media, in order, into groups of at most ``shard_bytes``, or of one video."""
    groups: list[list[str]] = []
    free = 0
    for name, count in frames.items():
        size = count * 3 * settings["image_size"] ** 2
        if not groups or size > free:
            groups.append([])
            free = settings["shard_bytes"]
        groups[-1].append(name)
        free -= size
    return groups


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.u8"
