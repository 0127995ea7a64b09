"""Labels of single CATER frames, computed from scenes: attributes, positions, the snitch's cell.

The cell is for finetuning with frame labels; the others are for supervised pretraining. Objects
inside a cone count as hidden, occluded objects as visible. Image positions use the camera of a
synthetic data set. Published scenes do not contain the camera, so theirs use the static camera
without its jitter of up to half a unit along each axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from ivcl_fast.config import FrameLabelKind
from ivcl_fast.data.dataset import Clip, Dataset
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.data.synthetic.cater.video import OBJECT_COLORS
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, spec_of
from ivcl_fast.data.synthetic.scene import CAMERA, MATERIALS, SIZES, TARGET
from ivcl_fast.data.synthetic.scene import SHAPES as OTHER_SHAPES
from ivcl_fast.data.synthetic.view import project
from ivcl_fast.errors import UserError

SHAPES = (*OTHER_SHAPES, "spl")
"""The last is the shape of the snitch."""
FLOOR = 12
"""Rows and columns of the floor grid for object positions; cones are at least one cell wide."""
VALUES = {
    "shape": SHAPES,
    "color": OBJECT_COLORS,
    "size": tuple(SIZES),
    "material": MATERIALS,
}
CLASSES = {
    "classification": tuple(value for values in VALUES.values() for value in values),
    "detection": SHAPES,
    "objects": tuple(f"{line} {i}" for line in ("column", "row") for i in range(FLOOR)),
}
"""Names of the classes by supervised objective. The only label of the snitch is its shape."""
OBJECTS = ("spl", *OBJECT_COLORS)
"""Object of each slot: the snitch, or the cones of one colour, which may cover it."""
PICTURE = 320, 240
"""Width and height for computing image positions; all CATER videos have this aspect ratio."""


Indices = Callable[[Scene, np.ndarray], np.ndarray]
"""Returns the indices of the classes in each frame, ``[frames, any]``, of a scene and whether each
object is visible, bool ``[frames, objects]``."""


class FrameLabels:
    """Labels of the frames of a data set: multi-hot float32 ``[T, *shape]``, or classes ``[T]``."""

    def __init__(self, dataset: Cater, shape: tuple[int, ...], indices: Indices) -> None:
        """``shape``: shape of a frame's labels; ``()`` for a single class.

        ``indices`` may return ``prod(shape)`` as padding.
        """
        self.dataset, self.shape = dataset, shape
        self._find = indices
        self._indices: dict[str, np.ndarray] = {}  # cache: scenes are slow to read

    def __call__(self, clip: Clip, frames: np.ndarray, frames_in_video: int) -> torch.Tensor:
        """Return the labels of frames of a clip.

        Raises :class:`UserError` if the clip's scene is missing or malformed, or has a different
        number of frames than the video.
        """
        if clip.name not in self._indices:
            self._indices[clip.name] = self._read(clip.name, frames_in_video)
        indices = torch.from_numpy(self._indices[clip.name][frames]).long()
        if not self.shape:
            return indices[:, 0]
        labels = torch.zeros(len(indices), math.prod(self.shape) + 1)
        return labels.scatter_(1, indices, 1.0)[:, :-1].reshape(-1, *self.shape)

    def _read(self, name: str, frames_in_video: int) -> np.ndarray:
        """Read a scene and return the indices, int32 ``[frames, any]``."""
        scene = self.dataset.scene(name, frames_in_video)
        try:
            objects, frames = scene["objects"], range(cater_frames.frame_count(scene))
            inside = [cater_frames.contained(scene, frame) for frame in frames]
            visible = np.array([[o["instance"] not in hid for o in objects] for hid in inside])
            return self._find(scene, visible).astype(np.int32)
        except (LookupError, TypeError, ValueError, StopIteration) as error:
            raise UserError(
                f"{self.dataset.root}: expected a CATER scene of {name}, got "
                f"{type(error).__name__}: {error}"
            ) from None


def visible_attributes(scene: Scene, visible: np.ndarray) -> np.ndarray:
    """Return the attributes of the visible objects."""
    number = {value: i for i, value in enumerate(CLASSES["classification"])}
    own = [
        [number[o["shape"]]] * len(VALUES) if o["shape"] == "spl" else
        [number[o[attribute]] for attribute in VALUES]
        for o in scene["objects"]
    ]  # fmt: skip
    return np.where(visible[..., None], own, len(number)).reshape(len(visible), -1)


def visible_centres(
    scene: Scene, visible: np.ndarray, grid: int, spec: SyntheticCater | None
) -> np.ndarray:
    """Return the patches of a ``grid`` with the centres of visible objects, by shape.

    ``spec`` determines the camera; None for published data.
    """
    objects, frames = scene["objects"], len(visible)
    places = np.array([[o["locations"][str(i)] for o in objects] for i in range(frames)])
    camera = np.array([CAMERA])
    if spec is not None:
        camera = spec.camera_path(scene["image_index"], frames)
    x, y, depth = np.moveaxis(project(places, camera, TARGET, *PICTURE), -1, 0)
    column, row = (np.floor(grid * v / w) for v, w in zip((x, y), PICTURE, strict=True))
    inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < grid)
    shape = np.array([SHAPES.index(o["shape"]) for o in objects])
    numbers = (row * grid + column) * len(SHAPES) + shape
    return np.where(visible & inside & (depth > 0), numbers, grid**2 * len(SHAPES))


def visible_objects(scene: Scene, visible: np.ndarray) -> np.ndarray:
    """Return the floor's column and row of each visible object, numbered by the object's slot."""
    none = len(OBJECTS) * 2 * FLOOR
    numbers = np.full((*visible.shape, 2), none)
    for i, thing in enumerate(scene["objects"]):
        kind = thing["color"] if thing["shape"] == "cone" else thing["shape"]
        if kind in OBJECTS:
            cells = [cater_frames.cell_of(thing, t, FLOOR) for t in range(len(visible))]
            row, column = np.divmod(cells, FLOOR)
            first = OBJECTS.index(kind) * 2 * FLOOR
            numbers[:, i] = np.stack([first + column, first + FLOOR + row], axis=-1)
    return np.where(visible[..., None], numbers, none).reshape(len(visible), -1)


def snitch_cells(scene: Scene, visible: np.ndarray, cells: int) -> np.ndarray:
    """Return the cell of the snitch, visible or hidden; ``cells``: along a side of the floor."""
    return np.array([[cater_frames.snitch_cell(scene, i, cells)] for i in range(len(visible))])


def make_frame_labels(dataset: Dataset, kind: FrameLabelKind, grid: int) -> FrameLabels:
    """Make frame labels; the kinds for supervised pretraining are named after its objectives.

    ``grid``: patches along a side of the frame. Raises :class:`UserError` if the data set has no
    such labels.
    """
    flag = "--frame-labels" if kind == "cells" else f"--objective {kind}"
    if not isinstance(dataset, Cater) or not (dataset.root / "scenes").is_dir():
        raise UserError(f"{flag}: expected CATER with its folder scenes/, got {dataset.root}")
    if kind == "cells":
        if not dataset.has_grid:
            raise UserError(f"{flag}: expected --task localize, got {dataset.task}")
        cells = round(dataset.num_classes**0.5)
        return FrameLabels(dataset, (), partial(snitch_cells, cells=cells))
    if kind == "classification":
        return FrameLabels(dataset, (len(CLASSES[kind]),), visible_attributes)
    if kind == "objects":
        return FrameLabels(dataset, (len(OBJECTS), 2 * FLOOR), visible_objects)
    spec = spec_of(dataset.root)
    names = dataset.root.name, dataset.root.resolve().name  # the folder may be "." or a link
    if spec is None and any("cameramotion" in name for name in names):
        raise UserError(
            f"{flag}: expected CATER with a static camera, synthetic or synthetic:moving, got "
            f"{dataset.root}, whose camera is unknown"
        )
    centres = partial(visible_centres, grid=grid, spec=spec)
    return FrameLabels(dataset, (grid**2, len(SHAPES)), centres)
