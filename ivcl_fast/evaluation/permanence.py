"""Object permanence of slots: does an object keep its slot while it is hidden, and where is it?

Shapes: T frames, O objects, S slots. A box is ``(left, top, right, bottom)`` in pixels; it is NaN
where nothing is drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SEEN = 4
"""Smallest number of visible pixels of an object; with fewer it is hidden and has no owner."""
THRESHOLDS = 0.1, 0.15, 0.2, 0.25, 0.3
"""Intersection over union that a box must exceed, for mAP@[0.1:0.3]."""


class HiddenRun(NamedTuple):
    """Successive frames in which an object is hidden, after it was visible."""

    object: int
    first: int
    last: int
    reappears: int | None
    """The frame after ``last``, or None if the video ends."""


def hidden_runs(visible: Tensor) -> list[HiddenRun]:
    """Return the runs of hidden frames, by object; ``visible`` bool ``[T, O]``.

    Frames before an object is first visible are left out.
    """
    runs = []
    for number, of_object in enumerate(visible.T.tolist()):
        first = None
        for frame in range(1, len(of_object)):
            if of_object[frame - 1] and not of_object[frame]:
                first = frame
            elif of_object[frame] and not of_object[frame - 1] and first is not None:
                runs.append(HiddenRun(number, first, frame - 1, frame))
        if first is not None and not of_object[-1]:
            runs.append(HiddenRun(number, first, len(of_object) - 1, None))
    return runs


def owner_slots(shared: Tensor, slots: int) -> Tensor:
    """Return the slot that owns each object: int64 ``[T, O]``, -1 for none.

    A slot owns an object if it draws more of the object than any other segment, and more of this
    object than of any other. A slot that draws everything thus owns one object only.

    ``shared``: pixels that objects share with segments, ``[T, O, segments]`` (see
    :func:`~ivcl_fast.evaluation.segmentation.shared_pixels`). The first ``slots`` segments are
    slots; others, such as a background, own nothing.
    """
    most, best = shared.max(dim=2)
    is_main = shared.argmax(dim=1).gather(1, best) == torch.arange(shared.shape[1])
    return torch.where((best < slots) & (most > 0) & is_main, best, -1)


def last_owner(owners: Tensor, run: HiddenRun) -> int:
    """Return the last slot that owned an object before a hidden run, -1 if there was none."""
    return next((s for s in owners[: run.first, run.object].flip(0).tolist() if s >= 0), -1)


def is_reidentified(owners: Tensor, visible: Tensor, run: HiddenRun) -> bool:
    """Return whether an object that reappears has the same owner as before it was hidden.

    Frames in which the object has no owner are skipped: the last owner before the run is compared
    with the first owner after it. The result is False if the object is hidden again before it has
    an owner. ``owners`` ``[T, O]``, ``visible`` bool ``[T, O]``.
    """
    before = last_owner(owners, run)
    frame = run.reappears
    while frame is not None and frame < len(owners) and visible[frame, run.object]:
        if (owner := int(owners[frame, run.object])) >= 0:
            return owner == before
        frame += 1
    return False


def segment_boxes(found: Tensor, segments: int) -> Tensor:
    """Return the box of each segment of pictures: float64 ``[M, segments, 4]``.

    ``found``: int64 ``[M, height, width]``, the segment of each pixel; -1 for none.
    """
    inside = found[:, None] == torch.arange(segments)[:, None, None]  # [M, segments, h, w]
    sides = []
    for along in (inside.any(dim=2), inside.any(dim=3)):  # columns, rows
        length = along.shape[-1]
        first, after = along.int().argmax(-1), length - along.flip(-1).int().argmax(-1)
        sides.append((first, after))
    (left, right), (top, bottom) = sides
    boxes = torch.stack([left, top, right, bottom], dim=-1).double()
    return torch.where(inside.flatten(2).any(dim=2, keepdim=True), boxes, torch.nan)


def held_boxes(boxes: Tensor, owners: Tensor, run: HiddenRun) -> Tensor:
    """Return where the last owner of a hidden object draws, in each frame of the run: ``[n, 4]``.

    ``boxes`` ``[T, S, 4]``: the box of each slot's pixels. While a slot draws nothing, its last box
    is held. NaN if the object never had an owner.
    """
    owner = last_owner(owners, run)
    if owner < 0:
        return torch.full((run.last - run.first + 1, 4), torch.nan, dtype=boxes.dtype)
    held, found = boxes[run.first - 1, owner], []
    for box in boxes[run.first : run.last + 1, owner]:
        held = held if box.isnan().any() else box
        found.append(held)
    return torch.stack(found)


def box_overlap(found: Tensor, true: Tensor) -> Tensor:
    """Return the intersection over union of boxes ``[n, 4]``, float64 ``[n]``; 0 for NaN."""
    shared = torch.minimum(found[:, 2:], true[:, 2:]) - torch.maximum(found[:, :2], true[:, :2])
    common = shared.clamp(min=0).prod(dim=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (found, true)]
    return (common / (areas[0] + areas[1] - common)).nan_to_num()


def average_precision(overlap: Tensor) -> Tensor:
    """Return, for overlaps ``[n]``, the fraction of :data:`THRESHOLDS` that each exceeds.

    Its mean is mAP@[0.1:0.3], computed as in LA-CATER's code: the fraction of frames whose box is
    right, averaged over thresholds.
    """
    return (overlap[:, None] > torch.tensor(THRESHOLDS)).double().mean(dim=1)


def centre_distance(found: Tensor, true: Tensor, size: int) -> Tensor:
    """Return the distance of the centres of boxes ``[n, 4]``, in widths of a picture of ``size``
    pixels.

    A NaN box counts as the middle of the picture.
    """
    centre, true_centre = (((boxes[:, :2] + boxes[:, 2:]) / 2) for boxes in (found, true))
    return (centre.nan_to_num(size / 2) - true_centre).norm(dim=1) / size
