"""Settings of the data: which clips to use, and how to read their frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ivcl_fast.errors import UserError, require_at_least

MOST_VIDEOS = 10_000_000
"""Videos to train or to evaluate on that a synthetic data set may have."""
MOST_WORKERS = 4096
"""Processes that may be asked for."""


@dataclass(frozen=True)
class DataConfig:
    """Which clips to use, and how to read their frames."""

    source: Annotated[str, tyro.conf.arg(name="data")] = "synthetic"
    """Your own videos: videos:DIR (a folder, with a folder for each class if there are classes),
    csv:FILE (a list of paths and labels), webdataset:PATTERN (tar files) or hf:NAME_OR_DIR (of the
    Hugging Face datasets package); a folder in a data set's published format: cater:DIR,
    acre:DIR or something-else:DIR; or a synthetic data set, written if it is missing: synthetic
    (CATER with a static camera), synthetic:moving, synthetic:states (tables of the objects in view
    instead of pictures; 32 pixels wide), synthetic:{acre-iid,acre-comp,acre-sys},
    synthetic:something-else."""
    task: str = "auto"
    """Task to finetune on. CATER: localize (on a 6x6 grid), localize_4x4, localize_8x8,
    actions_present, actions_order_uniq; Something-Else: compositional, fewshot_5shot, ...; your own
    videos: classify; auto: the data set's first task."""
    train_split: str = "auto"
    """Split to train on; auto: the data set's training split. To choose settings without looking at
    CATER's val, use train_subsetT with --curve-split train_subsetV."""
    curve_split: str = "auto"
    """Split measured during training; auto: the data set's own, which for CATER and Something-Else
    is the one that results are reported on."""
    val_fraction: float = 0.2
    """Fraction of your own videos, in each class, that is held out to validate on, chosen by a hash
    of their names; only where the data have no splits."""
    train_videos: int = 6000
    """Number of synthetic training videos."""
    val_videos: int = 600
    """Number of synthetic validation videos."""
    data_dir: Path = Path("data")
    """Folder of synthetic data sets, of copies of remote data, and of what is unpacked from data
    sets of the Hugging Face hub."""
    frame_stride: int = 0
    """Take every n-th frame of a part of the video; 0: frames evenly spaced over all of it, as
    CATER and ACRE need."""
    eval_clips: int = 1
    """Clips of each video, with different frames, whose answers are averaged in the results."""
    crop: Literal["none", "center"] = "none"
    """Part of the frames that the model sees. none: all of it, resized to the square; center: the
    largest square in the center, as in video classification; not where the answer is a place."""
    eval_crops: Literal[1, 3] = 1
    """Squares of each clip whose answers are averaged in the results. 3, with --crop center: also
    those at both ends of the longer side."""
    mirror: bool = False
    """Mirror half of the training clips, left to right; only for your own videos, and if that does
    not change their class."""
    loader: Literal["store", "stream"] = "store"
    """store: decode every video once, into a frame store; stream: decode the clips every epoch."""
    decoder: Literal["auto", "dali", "pyav"] = "auto"
    """Video decoder; auto: DALI if it can decode on a GPU, else PyAV."""
    require_all: bool = False
    """End with an error if a video cannot be used; by default such videos are named and left
    out."""
    placement: Literal["auto", "disk", "ram", "gpu"] = "auto"
    """Where the frame store is kept during training; auto: the fastest place with enough room."""
    workers: int | None = None
    """Processes that render and decode; by default one per CPU."""

    def check(self) -> None:
        """Raise :class:`UserError`, naming the flag, for a value that is not accepted."""
        require_at_least(self, 1, "train_videos", "val_videos", most=MOST_VIDEOS)
        require_at_least(self, 1, "eval_clips", most=1000)
        require_at_least(self, 1, "workers", most=MOST_WORKERS)
        require_at_least(self, 0, "frame_stride")
        if self.eval_crops > 1 and self.crop == "none":
            raise UserError(
                f"--eval-crops: {self.eval_crops} needs --crop center; accepted without it: 1"
            )
        if not 0 < self.val_fraction < 1:
            raise UserError(
                f"--val-fraction: {self.val_fraction} is not accepted; accepted: between 0 and 1"
            )
