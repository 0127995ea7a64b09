"""``la-cater:DIR``: LA-CATER, videos like CATER's with a box of each object in each frame.

Source: github.com/ofrikleinfeld/ObjectPermanence ("Learning Object Permanence from Video", Shamsian
et al., 2020), ``baselines/`` and ``generate/``. A data set has a folder for each split, or is one
split::

    train_data/, val_data/, test_data/
        videos/CATER_new_000123.avi
        labels/CATER_new_000123_bb.json           boxes by object: [x, y, width, height] by frame
        containment_and_occlusions/
            containment_annotations.txt           lines of "<video><tab><frame>,<frame>,..."
            containment_with_move_annotations.txt
            visibility_rate_gt_0.txt              the frames in which the snitch is visible

Boxes are in pixels of 320 x 240 and include hidden objects. A video of 301 frames has 300 boxes per
object: the last frame has none.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.formats.custom.labelled import TASK, TEST, TRAIN, VAL, Item, LabelledVideos
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_json

SNITCH = "small_gold_spl_metal_Spl_0"
"""Name of the snitch: size, color, shape, material and instance."""
FOLDERS = {"train_data": TRAIN, "val_data": VAL, "test_data": TEST}
WIDTH, HEIGHT = 320, 240
_STATES = "containment_and_occlusions"

SnitchState = Literal["visible", "occluded", "contained", "carried"]


class LaCater(LabelledVideos):
    """The videos of LA-CATER, without classes; a :class:`~ivcl_fast.data.dataset.Dataset`.

    Example::

        >>> dataset = LaCater(Path("la_cater"))
        >>> name = dataset.clips("test")[0].name
        >>> dataset.boxes(name)[SNITCH][150], dataset.snitch_states(name)[150]
    """

    def __init__(self, root: Path, task: str = TASK) -> None:
        """List the videos; raises :class:`UserError` if there are none."""
        root = Path(root)
        parts = {root / name: split for name, split in FOLDERS.items() if (root / name).is_dir()}
        items, self._folder = list[Item](), dict[str, Path]()
        for folder, split in (parts or {root: TRAIN}).items():
            for path in sorted((folder / "videos").glob("*.avi")):
                name = path.relative_to(root).with_suffix("").as_posix().replace("videos/", "")
                items.append(Item(Media(name, (path,)), (), split))
                self._folder[name] = folder
        if not items:
            raise UserError(f"la-cater:{root}: expected videos/*.avi, or train_data/, got neither")
        super().__init__(root, items)

    def boxes(self, name: str) -> dict[str, np.ndarray]:
        """Return the boxes of all objects, visible or not: float64 ``[frames, 4]`` by name.

        A box is left, top, right and bottom, as fractions of the picture's width and height.
        """
        path = self._folder[name] / "labels" / f"{Path(name).name}_bb.json"
        found: dict[str, Any] = read_json(path, "boxes by object")
        boxes = {instance: np.array(of_object, float) for instance, of_object in found.items()}
        for sides in boxes.values():
            sides[:, 2:] += sides[:, :2]
            sides /= (WIDTH, HEIGHT) * 2
        return boxes

    def snitch_states(self, name: str) -> list[SnitchState]:
        """Return whether the snitch is visible, and otherwise how it is hidden, by frame."""
        frames, states = self._folder[name] / _STATES, list[SnitchState]()
        inside, moved, visible = (
            _listed(frames / f"{file}.txt").get(Path(name).name, frozenset())
            for file in (
                "containment_annotations",
                "containment_with_move_annotations",
                "visibility_rate_gt_0",
            )
        )
        for frame in range(len(self.boxes(name)[SNITCH])):
            if frame in inside:
                states.append("carried" if frame in moved else "contained")
            else:
                states.append("visible" if frame in visible else "occluded")
        return states


@cache
def _listed(path: Path) -> dict[str, frozenset[int]]:
    """Read the frames listed for each video."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: expected LA-CATER's annotations, got no such file") from None
    parts = [line.partition("\t") for line in lines]
    return {video: frozenset(map(int, re.findall(r"\d+", frames))) for video, _, frames in parts}
