"""Evenly spaced frames of clips from a run's store, with their scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar

BATCH = 50
"""Clips per batch."""


@dataclass(frozen=True)
class Sample:
    """Clips of evenly spaced frames, and their scenes."""

    clips: Sequence[Clip]
    scenes: Sequence[Scene]
    ids: list[list[int]]
    """The frames of each clip."""

    @classmethod
    def of(cls, run: FinishedRun, split: str, count: int, most_frames: int | None = None) -> Sample:
        """Return the first ``count`` clips of a split.

        A clip has ``most_frames`` frames, or all frames of a shorter video; by default as many as
        the model takes.
        """
        clips = run.data.usable_clips(split, count)
        scenes = [run.data.scene(clip.name, run.data.num_frames(clip.media)) for clip in clips]
        length = run.config.model.num_frames
        if most_frames is not None:
            length = min(most_frames, *map(cater_frames.frame_count, scenes))
        ids = [frame_ids(cater_frames.frame_count(scene), length).tolist() for scene in scenes]
        clips = [replace(c, frames=tuple(i)) for c, i in zip(clips, ids, strict=True)]
        return cls(clips, scenes, ids)

    def batches(self, run: FinishedRun, what: str) -> Iterator[Tensor]:
        """Yield patch rows in batches of clips; ``what`` labels the progress bar.

        Raises :class:`UserError` for a video that can no longer be decoded.
        """
        with Bar(what, len(self.clips), "clips") as bar:
            for start in range(0, len(self.clips), BATCH):
                some = self.clips[start : start + BATCH]
                rows = run.data.rows(some, len(self.ids[0])).to(run.device)
                if len(rows) < len(some):  # streamed, not stored
                    raise UserError(
                        f"{run.data.dataset.root}: a video can no longer be decoded ({what})"
                    )
                yield rows
                bar(min(start + BATCH, len(self.clips)), len(self.clips))
