"""Writes a synthetic ACRE in the true on-disk format: configs, pictures and scenes.

A problem is a function of the spec, the split and its number alone. Its ten pictures and scenes
appear under their names only when whole, the scene of the last panel last; the configs come when
all problems are there (see :mod:`.writer`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from ivcl_fast.data.formats.acre import SPLITS, Attributes, Panel, Regime, media_name, object_table
from ivcl_fast.data.synthetic.acre.rules import draw_problem
from ivcl_fast.data.synthetic.acre.scene import LAMPS, Scene, draw_scenes
from ivcl_fast.data.synthetic.writer import (
    check_choice,
    check_counts,
    check_workers,
    claim,
    whole,
    write_items,
)
from ivcl_fast.data.workers import Report

Size = Literal["embedded", "full"]

_FORMAT_VERSION = 1
_SIZES = {"embedded": (96, 72), "full": (320, 240)}


@dataclass(frozen=True)
class SyntheticAcre:
    """Which data set to make.

    Raises:
        UserError: a field has a value that it does not accept.
    """

    regime: Regime = "iid"
    """``iid``; ``comp``, whose training and test objects differ; or ``sys``, whose training and
    test problems differ in how many trials light up."""
    size: Size = "embedded"
    """``full`` is ACRE's own 320 x 240; ``embedded`` is 96 x 72."""
    train: int = 3000
    """Number of training problems of four queries each (ACRE has 6,000)."""
    val: int = 500
    """Number of validation problems (ACRE has 2,000)."""
    test: int = 500
    """Number of test problems, which results are reported on (ACRE has 2,000)."""
    seed: int = 0
    """Another seed makes other problems."""

    def __post_init__(self) -> None:
        check_choice(self, "regime", get_args(Regime))
        check_choice(self, "size", get_args(Size))
        check_counts(self, {"train": 1, "val": 0, "test": 0, "seed": 0})

    @property
    def problems(self) -> int:
        """Number of problems in all."""
        return self.train + self.val + self.test

    def locate(self, index: int) -> tuple[str, int]:
        """Split, and number in it, of one of all problems."""
        for split in SPLITS:
            if index < getattr(self, split):
                return split, index
            index -= getattr(self, split)
        raise IndexError(f"no problem {index} past the last")

    @property
    def default_name(self) -> str:
        """Name of the folder it is kept in unless the user names another."""
        seed = f"-seed{self.seed}" if self.seed else ""
        counts = f"{self.train}-{self.val}-{self.test}"
        return f"synthetic-acre-{self.regime}-{self.size}-{counts}{seed}"


def write_acre(
    out: Path,
    spec: SyntheticAcre,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to a folder, or complete what an earlier call left there.

    Args:
        out: the folder; made if missing. A folder begun with another spec is refused.
        spec: what to make.
        workers: processes, one thread each; default one per CPU. The bytes do not depend on it.
        progress: called with (problems done, problems in all), also for those found done.

    Returns:
        ``out``, with ``images/*.png`` (RGBA), ``scenes/*.json``, ``config/{train,val,test}.json``
        (none for a split without problems) and ``synthetic.json``.

    Raises:
        UserError: the folder holds something else.
        KeyboardInterrupt: stopped by the user; its message says how to go on.
    """
    check_workers(workers)
    if claim(out, spec, _FORMAT_VERSION, ("images", "scenes"), "config"):
        return out
    write_items(
        partial(_write_problem, out, spec),
        lambda i: _scene_path(out, *spec.locate(i), 9),
        spec.problems,
        "problems",
        workers,
        progress,
    )
    _write_configs(out, spec)
    return out


def _write_problem(out: Path, spec: SyntheticAcre, index: int, report: Report) -> None:
    split, number = spec.locate(index)
    problem = draw_problem(spec.regime, split, spec.seed, number)
    table = object_table(spec.regime, split)
    rng = np.random.default_rng((spec.seed, SPLITS.index(split), number))
    for i, scene in enumerate(draw_scenes(problem, table, rng, *_SIZES[spec.size])):
        picture = Image.fromarray(scene.picture)
        picture.putalpha(255)
        name = f"{media_name(split, number)}_{i:02d}.png"
        with whole(out / "images" / name) as part:
            picture.save(part, format="png", compress_level=3)
        with whole(_scene_path(out, split, number, i)) as part:
            part.write_text(json.dumps(scene_dict(scene, problem[i], table, split, name)))
    report(1)


def _scene_path(out: Path, split: str, number: int, panel: int) -> Path:
    return out / "scenes" / f"{media_name(split, number)}_{panel:02d}.json"


def _write_configs(out: Path, spec: SyntheticAcre) -> None:
    """Write all configs beside their place and move them there at once."""
    part = out / "config.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for split in SPLITS:
        if count := getattr(spec, split):
            problems = (draw_problem(spec.regime, split, spec.seed, n) for n in range(count))
            text = json.dumps([[panel_dict(panel) for panel in problem] for problem in problems])
            (part / f"{split}.json").write_text(text + "\n")
    os.replace(part, out / "config")


def panel_dict(panel: Panel) -> dict[str, Any]:
    """A panel as ACRE's config states it."""
    asked = {"label": panel.label, "type": panel.type, "ref": panel.ref}
    return {
        "light_state": panel.light,
        "objects": list(panel.objects),
        **{key: value for key, value in asked.items() if value is not None},
    }


# --- Scenes --------------------------------------------------------------------------------------


def scene_dict(
    scene: Scene, panel: Panel, table: Sequence[Attributes], split: str, image: str
) -> dict[str, Any]:
    """A panel as ACRE's scene file states it; boxes are (left, top, width, height) in pixels."""
    pixels = scene.view.project(scene.places[None])[0]
    objects = [
        {
            "shape": shape,
            "size": "medium",
            "material": material,
            "3d_coords": _rounded(scene.places[k]),
            "rotation": round(math.degrees(scene.turns[k]), 4),
            "pixel_coords": _rounded(pixels[k]),
            "bbox": _box(scene.outlines[k]),
            "color": color,
            "mask": run_lengths(scene.masks[k]),
        }
        for k, (shape, color, material) in enumerate(table[o] for o in panel.objects)
    ]
    eye = scene.view.position[0]
    # Blender's angles of a camera that looks at the origin, upright.
    rotation = [math.atan2(math.hypot(eye[0], eye[1]), eye[2]), 0.0, math.atan2(eye[0], -eye[1])]
    machine = {
        "blicket_bbox": _box(scene.machine),
        "blicket_mask": run_lengths(scene.machine_mask),
    }
    return {
        "split": split,
        "image_filename": image,
        "camera": {"location": _rounded(eye), "rotation": _rounded(np.array(rotation))},
        "light_state": panel.light,
        "objects": objects,
        "directions": {name: _rounded(v) for name, v in scene.view.directions().items()},
        **{name: _rounded(place) for name, place in LAMPS.items()},
        **(machine if scene.machine.any() else {}),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 4).tolist()


def _box(outline: np.ndarray) -> list[int]:
    """Left, top, width and height; zeros if there is nothing."""
    rows, columns = np.flatnonzero(outline.any(axis=1)), np.flatnonzero(outline.any(axis=0))
    if len(rows) == 0:
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def run_lengths(mask: np.ndarray) -> str:
    """Lengths of the runs of 0 and 1 in turn, beginning with 0, row by row, joined by commas."""
    flat = mask.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *starts, flat.size]).tolist()
    return ",".join(map(str, [0, *lengths] if flat[0] else lengths))
