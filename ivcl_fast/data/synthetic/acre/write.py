"""Writes a synthetic ACRE in the published format: configs, pictures and scenes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ivcl_fast.data.formats.acre import (
    PANELS,
    SPLITS,
    Panel,
    Regime,
    media_name,
    object_table,
)
from ivcl_fast.data.synthetic.acre.rules import draw_problem
from ivcl_fast.data.synthetic.acre.scene import ORIGIN, draw_panel, machine_box, object_box
from ivcl_fast.data.synthetic.render import MACHINE, Renderer, choose_renderer, render
from ivcl_fast.data.synthetic.scene import CAMERA, Scene
from ivcl_fast.data.synthetic.view import directions, project
from ivcl_fast.data.synthetic.writer import DrawnSpec, Size
from ivcl_fast.files import atomic_write, write_text

_PUBLISHED_SAMPLES = 512
_SIZES = {"small": (128, 96), "embedded": (96, 72), "full": (320, 240)}


@dataclass(frozen=True)
class SyntheticAcre(DrawnSpec):
    """Describes a synthetic ACRE: RGBA ``images/*.png``, ``scenes/*.json`` and
    ``config/{train,val,test}.json`` (none for a split without problems).
    """

    regime: Regime = "iid"
    """``iid``; ``comp``: training and test objects differ; or ``sys``: training and test problems
    differ in how many trials light up."""
    size: Size = "embedded"
    """``full``: ACRE's own 320 x 240 pixels; ``embedded``: 96 x 72; ``small``: 128 x 96."""
    train: int = 3000
    """Number of training problems of four queries each (ACRE has 6,000)."""
    val: int = 500
    """Number of validation problems (ACRE has 2,000)."""
    test: int = 500
    """Number of test problems, on which results are reported (ACRE has 2,000)."""
    seed: int = 0
    """Random seed."""
    renderer: Renderer = "fast"
    """``fast``: ray casting, with the look of the published pictures; ``blender``: Blender."""
    samples: int = 0
    """Blender's samples per pixel; 0 for the published 512."""

    # Not settings: they are the same for all data sets of this kind.
    name = "synthetic-acre-{regime}-{size}-{train}-{val}-{test}"
    format_version = 2
    unit = "problems"
    folders = ("images", "scenes")
    index = "config"
    fps = 0.0

    @property
    def problems(self) -> int:
        """Number of all problems."""
        return self.train + self.val + self.test

    def locate(self, index: int) -> tuple[str, int]:
        """Return the split of problem ``index`` of all problems, and its number in the split."""
        for split in SPLITS:
            if index < getattr(self, split):
                return split, index
            index -= getattr(self, split)
        raise IndexError(f"problem {index} is past the last")

    def media_names(self) -> dict[str, int]:
        return {media_name(*self.locate(number)): number for number in range(self.problems)}

    def _panels(self, split: str, number: int) -> Iterator[tuple[Panel, Scene]]:
        """Yield the panels of a problem with their scenes."""
        problem = draw_problem(self.regime, split, self.seed, number)
        table = object_table(self.regime, split)
        rng = np.random.default_rng((self.seed, SPLITS.index(split), number))
        for panel in problem:
            yield panel, draw_panel(rng, panel, table)

    def draw_item(self, out: Path, number: int, width: int, height: int) -> Iterator[np.ndarray]:
        scenes = [scene for _, scene in self._panels(*self.locate(number))]
        yield np.concatenate([render(scene, [0], width, height).pictures for scene in scenes])

    def write_item(self, out: Path, media: bool, number: int) -> None:
        """Write the ten pictures and scenes of a problem; without ``media``, nothing."""
        split, number = self.locate(number)
        draw = choose_renderer(self.renderer, self.samples or _PUBLISHED_SAMPLES)
        panels = [*self._panels(split, number)]
        scenes = [(scene, [0]) for _, scene in panels]
        every = draw(scenes, *_SIZES[self.size], segments=True)
        for i, ((panel, scene), drawn) in enumerate(zip(panels, every, strict=True)):
            assert drawn.pictures is not None and drawn.segments is not None
            picture = Image.fromarray(drawn.pictures[0])
            picture.putalpha(255)
            image, scene_file = _panel_files(split, number, i)
            with atomic_write(out / image, durable=False) as file:
                picture.save(file, format="png", compress_level=3)
            described = scene_dict(scene, drawn.segments[0], panel, split, Path(image).name)
            write_text(out / scene_file, json.dumps(described), durable=False)

    def item_files(self, number: int, media: bool) -> tuple[str, ...]:
        """The scenes describe the pictures, and are written with them."""
        located = self.locate(number)
        return tuple(f for i in PANELS for f in _panel_files(*located, i)) if media else ()

    def index_files(self, out: Path) -> dict[str, str]:
        """Generate the problems again for the config of each split."""
        configs = {}
        for split in SPLITS:
            if count := getattr(self, split):
                problems = (draw_problem(self.regime, split, self.seed, n) for n in range(count))
                panels = [[panel_dict(panel) for panel in problem] for problem in problems]
                configs[f"{split}.json"] = json.dumps(panels) + "\n"
        return configs


def _panel_files(split: str, number: int, panel: int) -> tuple[str, str]:
    """Return the file names of a panel's picture and scene."""
    name = f"{media_name(split, number)}_{panel:02d}"
    return f"images/{name}.png", f"scenes/{name}.json"


def panel_dict(panel: Panel) -> dict[str, Any]:
    """Describe a panel as in ACRE's configs."""
    asked = {"label": panel.label, "type": panel.type, "ref": panel.ref}
    return {
        "light_state": panel.light,
        "objects": list(panel.objects),
        **{key: value for key, value in asked.items() if value is not None},
    }


# --- Scenes --------------------------------------------------------------------------------------


def scene_dict(
    scene: Scene, segments: np.ndarray, panel: Panel, split: str, image: str
) -> dict[str, Any]:
    """Describe a panel as in ACRE's scene files; ``segments``: its segmentation."""
    height, width = segments.shape
    pixels = project(scene.locations, scene.camera, ORIGIN, width, height)[0]
    objects = [
        {
            "shape": thing.shape,
            "size": thing.size,
            "material": thing.material,
            "3d_coords": _rounded(scene.locations[0, i]),
            "rotation": round(float(scene.rotations[0, i, 2]), 4),
            "pixel_coords": [*np.rint(pixels[i, :2]).astype(int).tolist(), round(pixels[i, 2], 4)],
            "bbox": object_box(scene, i, width, height),
            "color": thing.color,
            "mask": run_lengths(segments == i),
        }
        for i, thing in enumerate(scene.things)
    ]
    eye = scene.camera[0]
    # Rotation angles, in Blender's convention, of an upright camera that looks at the origin.
    rotation = [math.atan2(math.hypot(eye[0], eye[1]), eye[2]), 0.0, math.atan2(eye[0], -eye[1])]
    machine = {
        "blicket_bbox": machine_box(scene, width, height),
        "blicket_mask": run_lengths(segments == MACHINE),
    }
    # As in the published files, these are the directions of the camera before its jitter.
    named = directions(np.array(CAMERA), ORIGIN)
    return {
        "split": split,
        "image_filename": image,
        "camera": {"location": _rounded(eye), "rotation": _rounded(np.array(rotation))},
        "light_state": panel.light,
        "objects": objects,
        "directions": {name: _rounded(v) for name, v in named.items()},
        **{f"{name}_light": _rounded(place) for name, place in scene.lamps.items()},
        **({} if panel.light == "no" else machine),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 4).tolist()


def run_lengths(mask: np.ndarray) -> str:
    """Encode a mask row by row: lengths of runs of alternating 0s and 1s, beginning with 0s."""
    flat = mask.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *starts, flat.size]).tolist()
    return ",".join(map(str, [0, *lengths] if flat[0] else lengths))
