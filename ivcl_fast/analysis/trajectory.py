"""The cell in which a model locates the snitch over time, and the true one.

The classifier answers for the end of a video, so its input is the video cut off after each frame:
evenly spaced frames up to and including that frame. A prediction never depends on later frames.
Videos cut off early are shorter and slower than any training video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.models import reference


@dataclass(frozen=True)
class SnitchTrajectory:
    """Predictions for a video cut off after each of E frames; cells of an n x n floor."""

    ends: list[int]
    """The E frame numbers, from 0."""
    probabilities: np.ndarray
    """float32 ``[E, n * n]``: predicted probability of each cell."""
    cells: np.ndarray | None = None
    """int ``[E]``: the snitch's true cell; None without a scene."""
    hidden: np.ndarray | None = None
    """bool ``[E]``: whether the snitch is inside a cone; None without a scene."""

    @property
    def grid(self) -> int:
        """Cells along one side of the floor."""
        return round(self.probabilities.shape[1] ** 0.5)

    @property
    def predicted(self) -> np.ndarray:
        """int ``[E]``: the most likely cell."""
        return self.probabilities.argmax(axis=1)


def frames_up_to(end: int, num_frames: int) -> list[int]:
    """Return the sampled frames of a video cut off after frame ``end``."""
    return frame_ids(end + 1, num_frames).tolist()


@torch.inference_mode()
def follow_snitch(
    model: reference.IVCLClassifier,
    take: Callable[[Sequence[int]], Tensor],
    ends: list[int],
    scene: Scene | None = None,
) -> SnitchTrajectory:
    """Predict the snitch's cell after each frame of ``ends``.

    ``take(ids)`` returns frames of the video, uint8 ``[len(ids), 3, H, W]`` on the model's device;
    the ids are those of :func:`frames_up_to`. ``scene`` gives the true cells.
    """
    parts = [frames_up_to(end, model.cfg.num_frames) for end in ends]
    shared = sorted({i for ids in parts for i in ids})  # each is encoded once
    video = take(shared)[None]
    frame_index = torch.tensor([[[shared.index(i) for i in ids] for ids in parts]])
    logits = model(video, frame_index.to(video.device)).float()
    probabilities = logits.softmax(dim=-1).cpu().numpy()
    if scene is None:
        return SnitchTrajectory(ends, probabilities)
    grid = round(probabilities.shape[1] ** 0.5)
    cells = np.array([cater_frames.snitch_cell(scene, end, grid) for end in ends])
    hidden = np.array([cater_frames.snitch_hidden(scene, end) for end in ends])
    return SnitchTrajectory(ends, probabilities, cells, hidden)
