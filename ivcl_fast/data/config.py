"""Settings of the data: which clips to use, and how to read their frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ivcl_fast.errors import UserError, require_at_least

MOST_VIDEOS = 10_000_000
"""Largest number of synthetic videos for training or for evaluation."""
MOST_WORKERS = 4096
"""Largest number of worker processes."""


@dataclass(frozen=True)
class DataConfig:
    """Which clips to use, and how to read their frames."""

    source: Annotated[str, tyro.conf.arg(name="data")] = "synthetic"
    """Your videos: videos:DIR, csv:FILE; a published data set: cater:DIR, acre:DIR,
    something-else:DIR, la-cater:DIR, davis:DIR; a frame store without its videos: store:DIR or
    store:s3://BUCKET/DIR; or synthetic data, generated if missing: synthetic,
    synthetic:{moving,acre-iid,acre-comp,acre-sys,something-else}."""
    task: str = "auto"
    """Task to finetune on, such as localize, actions_present, compositional or classify; auto:
    the data set's first."""
    train_split: str = "auto"
    """Split to train on; auto: the data set's training split."""
    curve_split: str = "auto"
    """Split to evaluate on during training; auto: the data set's default."""
    train_videos: int = 6000
    """Number of synthetic training videos."""
    val_videos: int = 600
    """Number of synthetic validation videos."""
    keep_videos: bool = False
    """Write synthetic videos (CATER) or images (ACRE) and decode them; by default their frames are
    rendered straight into the frame store."""
    data_dir: Path = Path("data")
    """Folder for synthetic data."""
    frame_stride: int = 0
    """Take every n-th frame of a part of the video; 0: frames evenly spaced over the video."""
    clip_seconds: float = 0.0
    """Take frames evenly spaced over a part of this many seconds, for videos of different frame
    rates; 0: see --frame-stride."""
    eval_clips: int = 1
    """Clips per video at evaluation, with different frames; their predictions are averaged."""
    crop: Literal["none", "center"] = "none"
    """Part of each frame to use: none: the whole frame, resized to a square; center: the largest
    central square."""
    drop_duplicates: bool = False
    """Leave out training videos whose scene occurs in validation or in an earlier video (CATER)."""
    mirror: bool = False
    """Mirror half of the training clips left to right, and the cells of CATER's floor with them;
    for CATER and your own videos."""
    loader: Literal["store", "stream"] = "store"
    """store: decode every video once, into a frame store; stream: decode every epoch."""
    decoder: Literal["auto", "dali", "pyav"] = "auto"
    """Video decoder; auto: DALI if it can decode on a GPU, else PyAV."""
    workers: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: one per CPU)")
    ] = None
    """Number of processes that render and decode."""

    @property
    def wants_videos(self) -> bool:
        """Whether synthetic videos are written as files."""
        return self.keep_videos or self.loader == "stream"

    def check(self) -> None:
        """Raise :class:`UserError`, naming the flag, for an invalid value."""
        require_at_least(self, 1, "train_videos", "val_videos", most=MOST_VIDEOS)
        require_at_least(self, 1, "eval_clips", most=1000)
        require_at_least(self, 1, "workers", most=MOST_WORKERS)
        require_at_least(self, 0, "frame_stride", "clip_seconds")
        if self.frame_stride and self.clip_seconds:
            raise UserError(
                f"--clip-seconds: expected 0 with --frame-stride, got {self.clip_seconds}"
            )
