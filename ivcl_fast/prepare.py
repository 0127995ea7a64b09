"""``python -m ivcl_fast.prepare``: make data ready for training.

``videos:DIR``, ``csv:FILE``, ``cater:DIR``, ``acre:DIR``, ``something-else:DIR``,
``la-cater:DIR`` and ``davis:DIR`` decode the media of a data set into a frame store;
``synthetic:cater`` and others write a synthetic data set in a published format. Run an interrupted
command again to continue it. Under torchrun the ranks share the work; the jobs of a job array share
it with ``--part 1/8`` to ``--part 8/8`` in a shared folder.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ivcl_fast.command import parse, run_command
from ivcl_fast.config import MAX_SIZE
from ivcl_fast.data.config import MOST_VIDEOS, MOST_WORKERS, DataConfig
from ivcl_fast.data.datamodule import store_source
from ivcl_fast.data.dataset import Dataset, describe_splits
from ivcl_fast.data.decode.decoder import DecoderName
from ivcl_fast.data.formats.cater import Cater, report_repeats
from ivcl_fast.data.registry import (
    Synthetic,
    check_options,
    find_task,
    keep_labels,
    parse_source,
)
from ivcl_fast.data.store.build import build_part, build_store
from ivcl_fast.data.store.remote import RemoteStore
from ivcl_fast.data.store.shards import BAD_FILES, Part, VideoSource
from ivcl_fast.data.synthetic.blender.process import find_python
from ivcl_fast.data.synthetic.render import Renderer, warn_if_slow
from ivcl_fast.data.synthetic.writer import DrawnSpec, Size, write_dataset
from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError, require_at_least
from ivcl_fast.progress import Bar

ITEMS_BY_SIZE = {
    "cater": {"small": (1000, 300), "embedded": (3000, 600), "full": (3850, 1650)},
    "acre": {"small": (1000, 300), "embedded": (3000, 500), "full": (6000, 2000)},
    "something-else": {"embedded": (3600, 720), "full": (3600, 720)},
}
"""Default numbers of training and evaluation items; with ``full``, those of the published data set,
except for Something-Else, which has 112,795 clips."""
BLENDERS_ON_GPUS = 2
"""Default number of Blender processes on a machine with GPUs; each process uses all GPUs."""
MOST_SAMPLES = 2**20


@dataclass(frozen=True)
class StoreFlags:
    """How to build the frame store of a folder."""

    task: str = "auto"
    """Task whose videos to decode, if tasks use different videos (Something-Else); auto: the
    default task."""
    image_size: int = 64
    """Height and width of the stored frames."""
    patch_size: int = 8
    """Height and width of a patch; divides the image size."""
    crop: Literal["none", "center"] = "none"
    """Part of each frame to use: none: the whole frame, resized to a square; center: the largest
    central square."""
    decoder: DecoderName = "auto"
    """Video decoder; auto: DALI if it can decode on a GPU, else PyAV."""
    verify: bool = False
    """Verify the checksums of the finished store."""
    require_all: bool = False
    """Fail if a video cannot be used; by default such videos are logged and skipped."""
    engine: Literal["local", "ray"] = "local"
    """local: decode on this machine; ray: on the CPUs of a Ray cluster (``RAY_ADDRESS``), whose
    nodes share the folders of the videos and of the store (extra ``ray``)."""
    part: str | None = None
    """Build only part i of n of the store, such as 2/8, in a job array. The last part to finish
    completes the store; so does the command without --part."""


@dataclass(frozen=True)
class SyntheticFlags:
    """Settings of a synthetic data set."""

    size: Size = "embedded"
    """full: frame size and rate of the published data set; embedded: smaller and lower; small: for
    a slow renderer, CATER in 16 frames and both at 128 x 96 pixels."""
    train: int | None = None
    """Videos, or ACRE problems, to train on; the default depends on the data set and size."""
    val: int | None = None
    """Videos, or ACRE problems, to evaluate on."""
    seed: int = 0
    """Seed of the data set's content."""
    renderer: Renderer = "fast"
    """fast: ray casting, with the look of the published pictures; blender: Blender's Cycles, as
    they were made (CATER and ACRE; extra ``blender``)."""
    samples: int = 0
    """Blender's samples per pixel; 0: as published, 128 for CATER and 512 for ACRE."""


@dataclass(frozen=True)
class PrepareConfig:
    """Data to prepare."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """videos:DIR, csv:FILE, cater:DIR, acre:DIR, something-else:DIR, la-cater:DIR,
    davis:DIR, synthetic:cater, synthetic:moving (CATER with a moving camera),
    synthetic:acre-iid, synthetic:acre-comp, synthetic:acre-sys or synthetic:something-else."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder to write to; by default one inside DIR, or in --data-dir. For a frame store also a
    URL, such as s3://BUCKET/DIR."""
    data_dir: Path = Path("data")
    """Folder for synthetic data sets, as for ivcl_fast.train."""
    workers: int | None = None
    """Number of processes; by default one per CPU."""
    store: Annotated[StoreFlags, tyro.conf.arg(name="")] = StoreFlags()
    synthetic: Annotated[SyntheticFlags, tyro.conf.arg(name="")] = SyntheticFlags()

    def check(self) -> None:
        """Raise :class:`UserError`, naming the flag, for an invalid value."""
        require_at_least(self, 1, "workers", most=MOST_WORKERS)
        require_at_least(self.synthetic, 1, "train", most=MOST_VIDEOS)
        require_at_least(self.synthetic, 0, "val", most=MOST_VIDEOS)
        require_at_least(self.synthetic, 0, "seed", most=2**63 - 1)
        require_at_least(self.synthetic, 0, "samples", most=MOST_SAMPLES)
        require_at_least(self.store, 1, "image_size", "patch_size", most=MAX_SIZE)
        image, patch = self.store.image_size, self.store.patch_size
        if image % patch:
            raise UserError(f"--image-size: expected a multiple of {patch}, got {image}")


def prepare(config: PrepareConfig) -> None:
    """Build the frame store of a data set, or write a synthetic data set."""
    config.check()
    source = config.source
    if config.synthetic.samples and config.synthetic.renderer != "blender":
        raise UserError("--samples: expected --renderer blender, got fast")
    dataset_format, place = parse_source(source, "SOURCE")
    if isinstance(place, Synthetic):
        if config.store != StoreFlags():
            raise UserError(
                "--task, --image-size, --patch-size, --crop, --decoder, --verify, --require-all, "
                "--part, --engine: expected a folder, such as cater:DIR, got synthetic data"
            )
        if config.synthetic.renderer == "blender" and place.format == "something-else":
            raise UserError(f"--renderer: expected fast for {source}, got blender")
        prepare_synthetic(config, place)
    else:
        if config.synthetic != SyntheticFlags():
            raise UserError(
                "--size, --train, --val, --seed, --renderer, --samples: expected synthetic data, "
                "such as synthetic:cater, got a folder"
            )
        task = find_task(source, config.store.task)
        data = DataConfig(source, crop=config.store.crop)
        check_options(data)
        dataset = dataset_format.open_with(data, place, task)
        print(f"data: {dataset.task}, {describe_splits(dataset)}", flush=True)
        if isinstance(dataset, Cater):
            report_repeats(dataset)
        own_task = dataset.task if dataset_format.media_by_task else None
        remote = None
        if "://" in str(config.out):
            if config.store.part or config.store.engine == "ray":
                raise UserError(f"--out: expected a folder that nodes share, got {config.out}")
            remote = RemoteStore(str(config.out))
            remote.download(remote.sizes())  # an earlier store, to continue
            config = dataclasses.replace(config, out=str(remote.copy))
        store = prepare_store(dataset, config, own_task)
        if store is None:
            return
        for each in (task,) if own_task else dataset_format.tasks:
            with suppress(UserError):  # its lists are missing
                keep_labels(store, dataset_format, dataset_format.open_with(data, place, each))
        if remote and distributed.is_main():
            remote.upload()
            print(f"store: copied to {remote.url}")


def prepare_store(dataset: Dataset, config: PrepareConfig, own_task: str | None) -> Path | None:
    """Decode all media of a data set into its frame store, and return it if it is complete."""
    flags = config.store
    sizes = flags.image_size, flags.patch_size
    source, out, decoder = store_source(dataset, sizes, flags.decoder, flags.crop, own_task)
    if config.out:
        out, decoder = Path(config.out), flags.decoder
    part = None if flags.part is None else parse_part(flags.part)
    device = None
    if torch.cuda.is_available():  # there may be more ranks than GPUs
        device = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    if isinstance(source, Sequence):
        source = VideoSource(source, decoder, flags.crop, device)
    with Bar("decoding", 0, "videos") as bar:
        options: dict[str, Any] = dict(workers=config.workers, progress=bar, engine=flags.engine)
        if part and (left := build_part(part, source, out, sizes, **options)):
            print(
                f"store: {out}, part {flags.part} is complete; {left} videos of other parts are "
                "missing; the last part completes the store, or this command without --part"
            )
            return None
        store = build_store(source, out, *sizes, **options)
    if flags.verify:
        print(f"verifying {store.bytes / 1e9:.2f} GB", flush=True)
        store.verify()
    total = len(store.index) + len(store.bad_files)
    if not len(store.index):
        raise UserError(
            f"{dataset.root}: none of its {total} videos can be used; the reasons are in "
            f"{store.path / BAD_FILES}"
        )
    frames = int(store.index.frames.sum())
    how = "drawn" if store.decoder == "drawn" else f"decoded by {store.decoder}"
    print(
        f"store: {out}, {len(store.index)} videos, {frames:,} frames, "
        f"{store.bytes / 1e9:.2f} GB, {how}; "
        f"{len(store.bad_files)} videos could not be used"
        + (", checksums verified" if flags.verify else "")
    )
    if flags.require_all and store.bad_files:
        name, reason = next(iter(store.bad_files.items()))
        raise UserError(
            f"--require-all: expected {total} usable videos, got {len(store.index)}; {name}: "
            f"{reason}; the full list is in {store.path / BAD_FILES}"
        )
    return out


def parse_part(text: str) -> Part:
    """Parse a part ``i/n``, where i is from 1 to n; raise :class:`UserError` for anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part: expected i/n, such as 1/8 to 8/8, got {text!r}")
    return Part(int(match[1]) - 1, int(match[2]))


def prepare_synthetic(config: PrepareConfig, synthetic: Synthetic) -> None:
    """Write a synthetic data set."""
    flags, workers = config.synthetic, config.workers
    drawn = {}
    if flags.renderer == "blender":
        find_python()
        drawn = {"renderer": flags.renderer, "samples": flags.samples}
        if workers is None and torch.cuda.is_available():
            workers = BLENDERS_ON_GPUS
    sizes = ITEMS_BY_SIZE[synthetic.format]
    if flags.size not in sizes:
        raise UserError(f"--size: expected one of {', '.join(sizes)}, got {flags.size}")
    train, val = sizes[flags.size]
    spec = synthetic.spec(
        train=train if flags.train is None else flags.train,
        val=val if flags.val is None else flags.val,
        size=flags.size,
        seed=flags.seed,
        **drawn,
    )
    if "://" in str(config.out):
        raise UserError(f"--out: expected a folder for synthetic data, got {config.out}")
    out = Path(config.out) if config.out else config.data_dir / spec.default_name
    if isinstance(spec, DrawnSpec) and spec.renderer == "fast":
        warn_if_slow()
    counts = f"{spec.train} {spec.unit} to train on and {spec.val} to evaluate on"
    with Bar("rendering", 0, spec.unit) as bar:
        write_dataset(out, spec, workers, bar)
    print(f"data: {out}, {counts}")


def main() -> None:
    logging.getLogger("ivcl_fast").setLevel(logging.INFO)
    prepare(parse(PrepareConfig, "prepare", __doc__))


if __name__ == "__main__":
    run_command(main, continues=True)
