"""Compare the segments of slots with the objects, also while objects are hidden.

Shapes: T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.decode.media import Square, square_place
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.synthetic.cater.motion import LAST_FRAME
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, spec_of
from ivcl_fast.evaluation import permanence, segmentation
from ivcl_fast.evaluation.hold import MEMORIES, hold, join
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.evaluation.permanence import HiddenRun
from ivcl_fast.models.reference import as_pixels, unpatchify
from ivcl_fast.progress import Bar

Values = dict[str, list[Tensor]]
"""Values by column of a table, one tensor for each clip."""
SegmentScores = dict[str, dict[str, dict[str, Score]]]
"""Scores by table, row (model) and column."""

OBJECTS, REIDENTIFICATION, HIDDEN = "objects in slots", "re-identification", "hidden positions"
"""Tables."""
FROZEN = "frozen at the last visible place"
"""Baseline: a hidden object stays where it was last visible."""
HELD = ", held"
"""Suffix of rows that are scored after ``join`` and ``hold`` (``evaluation/hold.py``)."""
TRUE = "true segments"
"""Upper bound: the visible pixels of each object as segments, with numbers from ``hold`` alone."""
LENGTHS = {
    "all": (0.0, np.inf),
    "up to 30 frames": (0.0, 30.0),
    "31 to 100 frames": (30.0, 100.0),
    "over 100 frames": (100.0, np.inf),
}
"""Groups of occlusions by length in frames of CATER's timeline: above the first, up to the
second."""
KINDS = "occluded", "contained", "carried"
"""Ways in which an object is hidden: behind others, in a cone, in a cone that slides."""
MOST_CLIPS, MOST_FRAMES = 100, 38
BATCH = 50
"""Clips per batch of a :class:`Sample`."""


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

        A clip has ``most_frames`` frames, or all frames of a shorter video; by default the model's
        number of frames.
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
                yield rows
                bar(min(start + BATCH, len(self.clips)), len(self.clips))


@torch.no_grad()
def score_segments(run: FinishedRun, count: int, models: Models) -> SegmentScores:
    """Score the segments of slots, on the first evaluation clips of synthetic data.

    Masks of the objects are rendered again. A model that decodes each slot is scored on the pixels
    of each slot, in evenly spaced frames of a video. If there is no such model, a segment is the
    patches that attend most to one slot, in the model's frames. Each row is scored once more with
    segments joined and held by :mod:`~ivcl_fast.evaluation.hold`, except an untrained one.
    """
    spec, split = spec_of(run.data.dataset.root), run.data.eval_split
    if spec is None:
        return {}
    drawing: Models = {name: model for name, model in models.items() if hasattr(model, "draw")}
    models, frames = (drawing, MOST_FRAMES) if drawing else (models, None)
    sample = Sample.of(run, split, min(count, MOST_CLIPS), frames)
    size, slots = run.config.model.image_size, run.config.model.num_slots
    truth = zip(sample.scenes, sample.ids, strict=True)
    found: dict[str, dict[str, Values]] = {OBJECTS: {}, REIDENTIFICATION: {}, HIDDEN: {}}

    def score(name: str, segments: Tensor, count: int, true: Truth) -> None:
        owners, boxes = true.owners(segments, count), permanence.segment_boxes(segments, count)
        held = [permanence.held_boxes(boxes, owners, hidden) for hidden in true.hidden]
        add(found[OBJECTS], name, agreement(segments, true.masks))
        add(found[REIDENTIFICATION], name, reidentified(owners, true))
        add(found[HIDDEN], name, hidden_positions(held, true))

    for rows in sample.batches(run, f"segments of {split}"):
        # The clips come first, so that zip does not take a scene too many.
        for clip, (scene, ids) in zip(rows.split(1), truth, strict=False):
            true = Truth(spec, scene, ids, size, run.config.data.crop)
            pixels = unpatchify(as_pixels(clip[0]), run.config.model.patch_size).cpu()
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.amp):
                segments = {name: segments_of(model, clip) for name, model in models.items()}
            for name, of_model in segments.items():
                score(name, of_model, slots, true)
                if name != "untrained":
                    joined = join(of_model, pixels, slots)
                    score(name + HELD, hold(joined, pixels, slots), MEMORIES, true)
            objects = true.visible.shape[1]
            score(TRUE + HELD, hold(true.masks, pixels, objects), MEMORIES, true)
            add(found[HIDDEN], FROZEN, hidden_positions(true.frozen(), true))
    return {
        table: {
            name: means(values, 1 / slots if table == REIDENTIFICATION else 0.0)
            for name, values in of_table.items()
        }
        for table, of_table in found.items()
    }


class Truth:
    """The objects in frames of a synthetic clip, in pixels of the model's input."""

    def __init__(
        self, spec: SyntheticCater, scene: Scene, ids: Sequence[int], size: int, crop: Square
    ) -> None:
        self.ids, self.size = ids, size
        self.step = LAST_FRAME / (cater_frames.frame_count(scene) - 1)
        """Frames of CATER's timeline from one frame of the video to the next."""
        number, count = scene["image_index"], len(scene["objects"])
        self.masks = at_pixels(spec.object_masks(number, ids), size, crop)
        """int64 ``[T, size, size]``: the visible object in each pixel, -1 for none."""
        pixels = torch.stack([(self.masks == i).flatten(1).sum(1) for i in range(count)], dim=1)
        self.visible = pixels >= permanence.SEEN
        """bool ``[T, O]``."""
        self.unseen = pixels == 0
        """bool ``[T, O]``: whether no pixel of the object is visible; hidden positions are scored
        there."""
        self.hidden = permanence.hidden_runs(self.visible)
        self.boxes: dict[int, Tensor] = {}
        """Boxes of the objects that are ever hidden, ``[T, 4]`` each, as if nothing hid them."""
        for i in {run.object for run in self.hidden}:
            alone = at_pixels(spec.object_masks(number, ids, alone=i), size, crop)
            self.boxes[i] = permanence.segment_boxes((alone == i).long() - 1, 1)[:, 0]
        inside = [cater_frames.contained(scene, i) for i in ids]
        moved = [cater_frames.carried(scene, i) for i in ids]
        names = [o["instance"] for o in scene["objects"]]
        self.kinds = [
            [KINDS[(name in in_cone) + (name in in_moving)] for name in names]
            for in_cone, in_moving in zip(inside, moved, strict=True)
        ]
        """How each object is hidden, if it is, by frame and object."""

    def owners(self, found: Tensor, slots: int) -> Tensor:
        """Return the slot that owns each object ``[T, O]``, given segments ``[T, size, size]``."""
        shared = segmentation.shared_pixels(
            found.flatten(1), self.masks.flatten(1), slots + 1, self.visible.shape[1]
        )
        return permanence.owner_slots(shared[:, 1:], slots).masked_fill(~self.visible, -1)

    def frozen(self) -> list[Tensor]:
        """Return the box in which each hidden object was last visible, in each frame of its run."""
        return [
            self.boxes[run.object][[run.first - 1]].expand(run.last - run.first + 1, -1)
            for run in self.hidden
        ]

    def length(self, run: HiddenRun) -> float:
        """Return the length of a run before the object reappears, in frames of CATER's timeline."""
        assert run.reappears is not None
        return (self.ids[run.reappears] - self.ids[run.first]) * self.step


def segments_of(model: Any, clip: Tensor) -> Tensor:
    """Return the segment of each pixel of a clip: int64 ``[T, size, size]``, on the CPU.

    Segments are slots and, after them, a background.
    """
    if hasattr(model, "draw"):
        return model.draw(clip)[1][0].argmax(dim=1).cpu()
    patches = slot_attention(model, clip)[0].argmax(dim=1).cpu()  # [T, N]
    grid, patch = model.cfg.grid, model.cfg.patch_size
    image = patches.unflatten(1, (grid, grid))
    return image.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)


def agreement(found: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Return the agreement of segments with objects ``[T, h, w]``, by frame and for the video."""
    scores = {}
    for prefix, pictures in (("", len(found)), ("video ", 1)):
        segments, objects = found.reshape(pictures, -1), true.reshape(pictures, -1)
        scores[f"{prefix}FG-ARI"] = segmentation.adjusted_rand_index(segments, objects)
        scores[f"{prefix}ARI"] = segmentation.adjusted_rand_index(segments, objects + 1)
        scores[f"{prefix}mBO"] = segmentation.mean_best_overlap(segments, objects)
    return scores


def reidentified(owners: Tensor, true: Truth) -> dict[str, Tensor]:
    """Return whether each object that reappears has its slot again, by length of the occlusion."""
    runs = [run for run in true.hidden if run.reappears is not None]
    same = [permanence.is_reidentified(owners, true.visible, run) for run in runs]
    return {
        name: torch.tensor(
            [s for s, run in zip(same, runs, strict=True) if low < true.length(run) <= high]
        ).double()
        for name, (low, high) in LENGTHS.items()
    }


def hidden_positions(boxes: Iterable[Tensor], true: Truth) -> dict[str, Tensor]:
    """Return precision and distance of boxes in hidden frames, by the way objects are hidden.

    ``boxes``: ``[n, 4]`` for each of the hidden runs.
    """
    rows: list[tuple[str, Tensor, Tensor]] = []
    for run, found in zip(true.hidden, boxes, strict=True):
        frames = range(run.first, run.last + 1)
        real = true.boxes[run.object][run.first : run.last + 1]
        precision = permanence.average_precision(permanence.box_overlap(found, real))
        distance = permanence.centre_distance(found, real, true.size)
        kinds = [true.kinds[frame][run.object] for frame in frames]
        unseen = true.unseen[run.first : run.last + 1, run.object].tolist()
        rows += compress(zip(kinds, precision, distance, strict=True), unseen)
    return {
        f"{metric}, {kind}": torch.tensor([row[i] for row in rows if row[0] == kind]).double()
        for i, metric in ((1, "mAP"), (2, "distance"))
        for kind in KINDS
    }


def add(rows: dict[str, Values], name: str, of_clip: dict[str, Tensor]) -> None:
    """Add the values of a clip to a row of a table."""
    values = rows.setdefault(name, {})
    for column, found in of_clip.items():
        values.setdefault(column, []).append(found)


def means(values: Values, chance: float) -> dict[str, Score]:
    """Return the mean of each column, with an interval that resamples whole clips.

    Columns without a value are left out.
    """
    scores = {}
    for column, of_clips in values.items():
        clip = torch.cat([torch.full((len(v),), i) for i, v in enumerate(of_clips)])
        every = torch.cat(of_clips)
        known = ~every.isnan()
        if known.any():
            percent = column.startswith("mAP") or column in LENGTHS
            scores[column] = Score.mean(every[known], chance, percent, groups=clip[known])
    return scores


def at_pixels(masks: np.ndarray, size: int, square: Square) -> Tensor:
    """Resize masks of frames, ``[T, height, width]``, to the models' input: ``[T, size, size]``.

    A pixel takes the value at its centre. ``square``: the crop that models see.
    """
    shape, at = masks.shape[1:], np.arange(size) + 0.5
    height, width, top, left = square_place(square, size, *shape)  # rounded like the decoders
    row = (shape[0] * (top + at) / height).astype(np.intp)
    column = (shape[1] * (left + at) / width).astype(np.intp)
    return torch.from_numpy(masks[:, row[:, None], column])
