"""Labels of CATER's single frames, for supervised pretraining: what is in sight, and where.

They are read off the scenes. What is inside a cone is out of sight, what stands behind another
object is not. Places in the picture are as CATER's static camera sees them, or a moving one where a
synthetic data set says how it moved: scene files do not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from ivcl_fast.data.dataset import Clip, Dataset
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.data.synthetic.cater import world as cater_world
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, camera_of, frame_times, spec_of
from ivcl_fast.errors import UserError

SHAPES = (*cater_world.SHAPES, "spl")
"""The last is the snitch's."""
VALUES = {
    "shape": SHAPES,
    "color": cater_world.COLORS,
    "size": tuple(cater_world.SIZES),
    "material": cater_world.MATERIALS,
}
CLASSES = {
    "classification": tuple(value for values in VALUES.values() for value in values),
    "detection": SHAPES,
}
"""By supervised objective. Nothing of the snitch but its shape counts."""
PICTURE = 320, 240
"""Width and height of the picture that places are computed in; all of CATER has its shape."""


class FrameLabels(ABC):
    """The labels of a data set's frames, 1 where a class applies."""

    def __init__(self, dataset: Cater, shape: tuple[int, ...]) -> None:
        """``shape``: of a frame's labels."""
        self.dataset, self.shape = dataset, shape
        self.none = math.prod(shape)
        """Stands for no label where labels are told by their number."""
        self._numbers: dict[str, np.ndarray] = {}  # a scene is slow to read, and asked every epoch

    def __call__(self, clip: Clip, frames: np.ndarray) -> torch.Tensor:
        """float32 ``[T, *shape]`` of these frames.

        Raises :class:`UserError` where the clip's scene is missing or does not tell.
        """
        if clip.name not in self._numbers:
            self._numbers[clip.name] = self._read(clip.name)
        known = self._numbers[clip.name]
        if frames.max() >= len(known):
            raise UserError(
                f"{self.dataset.root}: the scene of {clip.name} tells of {len(known)} frames, "
                "and its video has more"
            )
        labels = torch.zeros(len(frames), self.none + 1)
        labels.scatter_(1, torch.from_numpy(known[frames]).long(), 1.0)
        return labels[:, : self.none].reshape(-1, *self.shape)

    def _read(self, name: str) -> np.ndarray:
        """int32 ``[frames, any]``, of the scene of that name."""
        scene = self.dataset.scene(name)
        try:
            objects, frames = scene["objects"], range(cater_frames.frame_count(scene))
            inside = [cater_frames.contained(scene, frame) for frame in frames]
            in_sight = np.array([[o["instance"] not in hid for o in objects] for hid in inside])
            return self.numbers(scene, in_sight).astype(np.int32)
        except (LookupError, TypeError, ValueError, StopIteration) as error:
            raise UserError(
                f"{self.dataset.root}: the scene of {name} is not one of CATER's "
                f"({type(error).__name__}: {error})"
            ) from None

    @abstractmethod
    def numbers(self, scene: Scene, in_sight: np.ndarray) -> np.ndarray:
        """``[frames, any]``: which of a frame's labels are 1, by number; ``none`` fills up.

        ``in_sight``: bool ``[frames, objects]``.
        """


class AttributesInSight(FrameLabels):
    """Which attributes a frame shows, ``[C]``."""

    def __init__(self, dataset: Cater) -> None:
        super().__init__(dataset, (len(CLASSES["classification"]),))

    def numbers(self, scene: Scene, in_sight: np.ndarray) -> np.ndarray:
        number = {value: i for i, value in enumerate(CLASSES["classification"])}
        own = [
            [number[o["shape"]]] * len(VALUES) if o["shape"] == "spl" else
            [number[o[attribute]] for attribute in VALUES]
            for o in scene["objects"]
        ]  # fmt: skip
        return np.where(in_sight[..., None], own, self.none).reshape(len(in_sight), -1)


class CentresInSight(FrameLabels):
    """The patch that an object's centre is in, by shape, ``[N, C]``; none outside the picture."""

    def __init__(self, dataset: Cater, grid: int) -> None:
        super().__init__(dataset, (grid**2, len(SHAPES)))
        self.grid = grid
        self.spec = spec_of(dataset.root) or SyntheticCater()
        """Says where the camera is."""

    def numbers(self, scene: Scene, in_sight: np.ndarray) -> np.ndarray:
        objects, frames = scene["objects"], len(in_sight)
        places = np.array([[o["locations"][str(i)] for o in objects] for i in range(frames)])
        camera = camera_of(self.spec, scene["image_index"], *PICTURE)
        if len(camera.position) > 1:
            camera = camera.at(frame_times(frames))
        x, y, depth = np.moveaxis(camera.project(places), -1, 0)
        column, row = (np.floor(self.grid * v / w) for v, w in zip((x, y), PICTURE, strict=True))
        inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < self.grid)
        shape = np.array([SHAPES.index(o["shape"]) for o in objects])
        numbers = (row * self.grid + column) * len(SHAPES) + shape
        return np.where(in_sight & inside & (depth > 0), numbers, self.none)


def frame_labels(dataset: Dataset, objective: str, grid: int) -> FrameLabels:
    """What a supervised ``objective`` learns; ``grid`` is a frame's patches along one side.

    Raises :class:`UserError` for a data set that does not tell.
    """
    if not isinstance(dataset, Cater) or not (dataset.root / "scenes").is_dir():
        raise UserError(
            f"--objective {objective}: {dataset.root} has no labels of single frames; accepted: "
            "CATER with its folder scenes/, published or synthetic"
        )
    if objective == "classification":
        return AttributesInSight(dataset)
    if spec_of(dataset.root) is None and "cameramotion" in dataset.root.name:
        raise UserError(
            f"--objective {objective}: {dataset.root} does not tell how its camera moved; "
            "accepted: CATER with a static camera, or synthetic:moving"
        )
    return CentresInSight(dataset, grid)
