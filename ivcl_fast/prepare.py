"""``python -m ivcl_fast.prepare``: make data ready for training.

``cater:DIR`` decodes the videos of a CATER package into a frame store; ``synthetic:cater`` writes a
package of our own making in the same format. Both go on where an interrupted call stopped.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .data.cater import Cater
from .data.decode import DecoderName
from .data.index import VideoError, probe
from .data.store import FrameStore, build_store, default_store_path
from .data.synthetic.cater import SyntheticCater, write_cater
from .errors import UserError, run_command
from .progress import Bar

ACCEPTED = "cater:DIR or synthetic:cater"
VIDEOS_OF_SIZE = {"embedded": (3000, 600), "full": (3850, 1650)}
"""Training and validation videos; CATER's own numbers at its own size."""


@dataclass(frozen=True)
class StoreFlags:
    """How to build the frame store of cater:DIR."""

    image_size: int = 64
    """Height and width that frames are resized to."""
    patch_size: int = 8
    """Height and width of a patch; divides the image size."""
    decoder: DecoderName = "auto"
    """Video decoder; auto: DALI where it is installed, else PyAV."""
    verify: bool = False
    """Read the whole store once more and compare its checksums."""


@dataclass(frozen=True)
class SyntheticFlags:
    """What synthetic:cater is to hold."""

    size: Literal["embedded", "full"] = "embedded"
    """full: CATER's 320x240, 24 fps, 301 frames; embedded: the same scenes, smaller and sparser."""
    camera: Literal["static", "moving"] = "static"
    """Whether the camera moves."""
    train: int | None = None
    """Training videos; by default 3000, at full size 3850."""
    val: int | None = None
    """Validation videos; by default 600, at full size 1650."""
    seed: int = 0
    """Another seed makes other videos."""


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """cater:DIR or synthetic:cater."""
    out: Path | None = None
    """Where to write; by default a folder inside DIR, or under data/."""
    workers: int | None = None
    """Processes; by default one per CPU."""
    dry_run: bool = False
    """Only say what would be done."""
    store: Annotated[StoreFlags, tyro.conf.arg(name="")] = field(default_factory=StoreFlags)
    synthetic: Annotated[SyntheticFlags, tyro.conf.arg(name="")] = field(
        default_factory=SyntheticFlags
    )


def prepare(config: PrepareConfig) -> None:
    """Do what the config asks for."""
    kind, _, rest = config.source.partition(":")
    if kind == "cater" and rest:
        if config.synthetic != SyntheticFlags():
            raise UserError("--size, --camera, --train, --val and --seed are for synthetic:cater")
        prepare_store(Path(rest), config)
    elif config.source == "synthetic:cater":
        if config.store != StoreFlags():
            raise UserError("--image-size, --patch-size, --decoder and --verify are for cater:DIR")
        prepare_synthetic(config)
    else:
        raise UserError(f"{config.source!r} is not {ACCEPTED}")


def prepare_store(root: Path, config: PrepareConfig) -> None:
    """Decode all videos of all lists of a CATER package."""
    flags = config.store
    sizes = flags.image_size, flags.patch_size
    videos = Cater(root).videos()
    out = config.out or default_store_path(root, *sizes, flags.decoder)
    if config.dry_run:
        describe(videos, out, flags.image_size)
        return
    with Bar("decoding", 0, "frames") as bar:
        store = build_store(videos, out, *sizes, flags.decoder, config.workers, progress=bar)
    if flags.verify:
        store.verify()
    print(summary(store) + (", checksums right" if flags.verify else ""))


def describe(videos: list[Path], out: Path, image_size: int) -> None:
    """Say what building a store would do, from the videos' headers."""
    frames, reasons = 0, []
    for video in videos:
        try:
            frames += probe(video).frames
        except VideoError as error:
            reasons.append(f"  {video}: {error}")
    gigabytes = frames * 3 * image_size**2 / 1e9
    print(f"would decode {len(videos) - len(reasons)} videos, {frames:,} frames,")
    print(f"into {out}, {gigabytes:.2f} GB; {len(reasons)} videos cannot be used")
    for reason in reasons[:20] + (["  ..."] if len(reasons) > 20 else []):
        print(reason)


def summary(store: FrameStore) -> str:
    """One line about a store."""
    frames = sum(store.num_frames(name) for name in store.names)
    gigabytes = frames * store.num_patches * store.patch_dim / 1e9
    return (
        f"store: {store.path}, {len(store.names)} videos, {frames:,} frames, {gigabytes:.2f} GB, "
        f"decoded by {store.decoder}; {len(store.bad_files)} videos could not be used"
    )


def prepare_synthetic(config: PrepareConfig) -> None:
    """Write a synthetic CATER."""
    flags = config.synthetic
    train, val = VIDEOS_OF_SIZE[flags.size]
    spec = SyntheticCater(
        flags.size,
        flags.camera,
        train if flags.train is None else flags.train,
        val if flags.val is None else flags.val,
        flags.seed,
    )
    out = config.out or Path("data") / spec.default_name
    if config.dry_run:
        print(f"would write {spec.videos} videos into {out}")
        return
    with Bar("rendering", spec.videos, "videos") as bar:
        write_cater(out, spec, config.workers, bar)
    print(f"data: {out}, {spec.train} training and {spec.val} validation videos")


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
