"""The plan of a store's build: what is decoded into which shard, written before any is built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.choice import choose_decoders
from ivcl_fast.data.decode.decoder import DecoderName
from ivcl_fast.data.store.index import index_media
from ivcl_fast.data.store.shards import META, ShardTask, assign_media
from ivcl_fast.data.workers import WorkerPool
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked, write_text
from ivcl_fast.manifest import check_signed, signed

PLAN, LOCK = "plan.json", "build.lock"


def make_plan(
    media: Sequence[Media],
    out: Path,
    settings: dict[str, Any],
    decoder: DecoderName,
    pool: WorkerPool | None,
    gpu: int | None,
) -> dict[str, Any] | None:
    """Make the plan, the settings and what to decode, or read it if another process made it.

    Returns None if another process has finished the store in the meantime.
    """
    with locked(out / LOCK, busy="planned"):
        if (out / META).exists():
            return None
        if (out / PLAN).exists():
            plan = read_plan(out / PLAN)
            check_settings(out, plan, settings)
            return plan
        infos, bad_files = index_media(media, pool)
        decoders = choose_decoders(media, infos, decoder, gpu)
        plan = settings | {
            "frames": {name: info.frames for name, info in infos.items()},
            "decoders": decoders,
            "bad_files": bad_files,
        }
        write_text(out / PLAN, signed({"plan": plan}))
        return plan


def read_plan(file: Path) -> dict[str, Any]:
    """Read a plan; raises :class:`UserError` if it is damaged."""
    try:
        text = file.read_bytes()
        found = json.loads(text)
        return found if "frames" in found else check_signed(text)["plan"]  # "frames": version 0.1.0
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{file}: damaged: {error}; delete {file.parent} to build the store again"
        ) from None


def shard_tasks(
    media: Sequence[Media], out: Path, plan: dict[str, Any], gpu: int | None
) -> list[ShardTask]:
    by_name = {one.name: one for one in media}
    frames, decoders = plan["frames"], plan["decoders"]
    groups = assign_media(frames, 3 * plan["image_size"] ** 2, plan["shard_bytes"])
    return [
        ShardTask(
            out / f"shard-{number:05d}.u8",
            tuple(by_name[name] for name in group),
            tuple(frames[name] for name in group),
            tuple(decoders[name] for name in group),
            plan["image_size"],
            plan["patch_size"],
            gpu,
        )
        for number, group in enumerate(groups)
    ]


def check_settings(out: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise :class:`UserError` if a store or a plan has other settings."""
    for key, value in settings.items():
        if found.get(key, value) == value:
            continue
        what = f"with {key} {found[key]}, not {value}"
        if key == "source_digest":
            what = "of other videos (names or file sizes differ)"
        raise UserError(f"{out}: contains a store {what}; delete it or choose another folder")
