"""``python -m ivcl_fast.prepare``: make data ready for training.

``cater:DIR``, ``acre:DIR`` and ``something-else:DIR`` decode the media of a data set in its true
format into a frame store; ``synthetic:cater`` and the like write a data set of our own making in
the same format. Both go on where an interrupted call stopped. Under torchrun the ranks share the
work.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ivcl_fast.data import registry as catalog
from ivcl_fast.data.dataset import Dataset, Media, VideoError
from ivcl_fast.data.decode.decoder import (
    ChosenDecoder,
    DecoderName,
    default_workers,
    make_decoder,
    resolve_decoder,
)
from ivcl_fast.data.store.build import build_store, choose_decoders, default_store_path
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.index import index_media
from ivcl_fast.data.workers import STALL_SECONDS, WorkerPool
from ivcl_fast.errors import UserError, run_command
from ivcl_fast.progress import Bar

ITEMS_OF_SIZE = {
    "cater": {"embedded": (3000, 600), "full": (3850, 1650)},
    "acre": {"embedded": (3000, 500), "full": (6000, 2000)},
    "something-else": {"embedded": (3600, 720), "full": (3600, 720)},
}
"""Items to train and to measure on; at full size the data sets' own numbers, where that is sane."""
MEASURED_SECONDS = 2.0
"""Of decoding, from which a dry run tells how long all of it will take."""


@dataclass(frozen=True)
class StoreFlags:
    """How to build the frame store of a folder."""

    task: str = "auto"
    """Where tasks have media of their own (Something-Else): whose; auto: the usual task's."""
    image_size: int = 64
    """Height and width that frames are resized to."""
    patch_size: int = 8
    """Height and width of a patch; divides the image size."""
    decoder: DecoderName = "auto"
    """Video decoder; auto: DALI where there is a GPU that it can decode on, else PyAV."""
    verify: bool = False
    """Read the whole store once more and compare its checksums."""


@dataclass(frozen=True)
class SyntheticFlags:
    """What a synthetic data set is to hold."""

    size: Literal["embedded", "full"] = "embedded"
    """full: the true data set's own frame size and rate; embedded: the same, smaller."""
    camera: Literal["static", "moving"] = "static"
    """Whether the camera moves (CATER)."""
    train: int | None = None
    """Videos, or ACRE problems, to train on; the default depends on the data set and size."""
    val: int | None = None
    """Videos, or ACRE problems, to measure on."""
    seed: int = 0
    """Another seed makes other data."""


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """cater:DIR, acre:DIR, something-else:DIR, synthetic:cater, synthetic:acre-iid, -comp or
    -sys, or synthetic:something-else."""
    out: Path | None = None
    """Where to write; by default a folder inside DIR, or under data/."""
    workers: int | None = None
    """Processes; by default one per CPU."""
    dry_run: bool = False
    """Only say what would be done, how large it gets, and how long it takes."""
    store: Annotated[StoreFlags, tyro.conf.arg(name="")] = field(default_factory=StoreFlags)
    synthetic: Annotated[SyntheticFlags, tyro.conf.arg(name="")] = field(
        default_factory=SyntheticFlags
    )


def prepare(config: PrepareConfig) -> None:
    """Do what the config asks for."""
    name = config.source
    if name == "synthetic:cater":
        name = f"synthetic:{config.synthetic.camera}"
    elif config.synthetic.camera != "static":
        raise UserError("--camera is for synthetic:cater")
    kind, place = catalog.find(name)
    if isinstance(place, catalog.Synthetic):
        if config.store != StoreFlags():
            raise UserError(
                "--task, --image-size, --patch-size, --decoder and --verify are for a data set's "
                "folder"
            )
        prepare_synthetic(config, place)
    else:
        if config.synthetic != SyntheticFlags():
            raise UserError("--size, --camera, --train, --val and --seed are for synthetic data")
        dataset = kind.open(place, catalog.find_task(name, config.store.task))
        prepare_store(dataset, config, dataset.task if kind.media_by_task else None)


def prepare_store(dataset: Dataset, config: PrepareConfig, own_task: str | None) -> None:
    """Decode all media of a data set."""
    flags = config.store
    sizes = flags.image_size, flags.patch_size
    media = dataset.media()
    out = config.out or default_store_path(dataset.root, *sizes, flags.decoder, own_task)
    if config.dry_run:
        describe(media, out, config)
        return
    with Bar("decoding", 0, "frames") as bar:
        store = build_store(media, out, *sizes, flags.decoder, config.workers, progress=bar)
    if flags.verify:
        store.verify()
    print(summary(store) + (", checksums right" if flags.verify else ""))


def describe(media: Sequence[Media], out: Path, config: PrepareConfig) -> None:
    """Say what building a store would take; decodes a little to know how fast that goes."""
    flags = config.store
    workers = config.workers or default_workers(resolve_decoder(flags.decoder))
    with WorkerPool(workers, STALL_SECONDS) if workers > 1 else nullcontext() as pool:
        infos, bad_files = index_media(media, pool, lambda _: None)
    decoders = choose_decoders(infos, flags.decoder)
    frames = sum(info.frames for info in infos.values())
    gigabytes = frames * 3 * flags.image_size**2 / 1e9
    usable = [one for one in media if one.name in infos]
    rate = measure_decoding(usable, decoders, flags.image_size)
    print(f"would decode {len(usable)} videos, {frames:,} frames,")
    print(f"into {out}, {gigabytes:.2f} GB; {len(bad_files)} videos cannot be used;")
    if rate:
        print(
            f"about {duration(frames / rate / workers)}: {rate:,.0f} frames/s by each of "
            f"{workers} workers"
        )
    for name, reason in list(bad_files.items())[:20]:
        print(f"  {name}: {reason}")
    if len(bad_files) > 20:
        print("  ...")


def measure_decoding(
    media: Sequence[Media], decoders: dict[str, ChosenDecoder], image_size: int
) -> float:
    """Frames per second of one worker, over the first media; 0 if none can be decoded."""
    frames, seconds = 0, 0.0
    for one in media:
        decoder = make_decoder(decoders[one.name], image_size)
        start = time.perf_counter()
        try:
            frames += len(decoder.decode(one))
        except VideoError:
            continue
        seconds += time.perf_counter() - start
        if seconds > MEASURED_SECONDS:
            break
    return frames / seconds if seconds else 0.0


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def summary(store: FrameStore) -> str:
    """One line about a store."""
    frames = sum(store.num_frames(name) for name in store.names)
    return (
        f"store: {store.path}, {len(store.names)} videos, {frames:,} frames, "
        f"{store.bytes / 1e9:.2f} GB, decoded by {store.decoder}; "
        f"{len(store.bad_files)} videos could not be used"
    )


def prepare_synthetic(config: PrepareConfig, synthetic: catalog.Synthetic) -> None:
    """Write a synthetic data set."""
    flags = config.synthetic
    train, val = ITEMS_OF_SIZE[synthetic.kind][flags.size]
    options: dict[str, Any] = dict(size=flags.size, seed=flags.seed)
    spec = synthetic.spec(
        train=train if flags.train is None else flags.train,
        val=val if flags.val is None else flags.val,
        **options,
    )
    out = config.out or Path("data") / spec.default_name
    counts = f"{spec.train} {synthetic.items} to train on and {spec.val} to measure on"
    if config.dry_run:
        print(f"would write {counts} into {out}")
        return
    with Bar("rendering", 0, synthetic.items) as bar:
        synthetic.write(out, spec, config.workers, bar)
    print(f"data: {out}, {counts}")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ivcl_fast").setLevel(logging.INFO)
    config = tyro.cli(PrepareConfig, prog="python -m ivcl_fast.prepare", description=__doc__)
    try:
        prepare(config)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    run_command(main)
