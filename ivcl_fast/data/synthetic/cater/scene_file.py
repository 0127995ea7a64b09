"""Scene files of CATER videos."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ivcl_fast.data.synthetic.cater.motion import LAST_FRAME
from ivcl_fast.data.synthetic.cater.video import Video
from ivcl_fast.data.synthetic.scene import CAMERA, TARGET, Thing
from ivcl_fast.data.synthetic.view import directions, project

_MODELS = {
    "cube": "SmoothCube_v2",
    "sphere": "Sphere",
    "cylinder": "SmoothCylinder-Short",
    "cone": "Cone",
    "spl": "Spl",
}
"""Names of the published meshes, after which CATER names objects."""


def video_name(index: int) -> str:
    """Name the file of a video, as in the lists and in ``videos``."""
    return f"CATER_new_{index:06d}.avi"


def frame_times(frames: int) -> np.ndarray:
    """Return the frames of CATER's timeline in a video: int64 ``[frames]``, from 0 to 300."""
    return np.rint(np.linspace(0, LAST_FRAME, frames)).astype(np.intp)


def scene_dict(
    video: Video, frames: np.ndarray, index: int, size: tuple[int, int]
) -> dict[str, Any]:
    """Describe a video of the given frames of the timeline.

    Movements are in frames of the video, which may be fewer than CATER's 301. Locations are linear
    in time, as in CATER; pictures are eased. ``size``: width and height of the pictures.
    """
    names = _instances(video.things)
    first = video.motion.locations[:1]
    pixels = project(first, video.camera[:1], TARGET, *size)[0]
    locations = np.round(video.motion.locations[frames], 4)
    objects = [
        {
            "shape": thing.shape,
            "size": thing.size,
            "sized": thing.radius,
            "material": thing.material,
            "3d_coords": locations[0, i].tolist(),
            "rotation": round(float(video.thetas[i]), 4),
            "pixel_coords": [*np.rint(pixels[i, :2]).astype(int).tolist(), round(pixels[i, 2], 4)],
            "color": thing.color,
            "instance": names[i],
            "locations": {str(k): place for k, place in enumerate(locations[:, i].tolist())},
        }
        for i, thing in enumerate(video.things)
    ]
    scale = (len(frames) - 1) / LAST_FRAME
    movements = {
        name: [
            [
                action,
                None if other is None else names[other],
                round(start * scale),
                round(end * scale),
            ]
            for action, other, start, end in of_thing
        ]
        for name, of_thing in zip(names, video.motion.movements, strict=True)
    }
    # As in the published files, these are the directions of the camera before its jitter.
    named = directions(np.array(CAMERA), TARGET)
    return {
        "split": "new",
        "image_index": index,
        "image_filename": video_name(index),
        "objects": objects,
        "directions": {name: np.round(v, 4).tolist() for name, v in named.items()},
        "relationships": _relationships(first[0], named),
        "movements": movements,
    }


def _instances(things: tuple[Thing, ...]) -> list[str]:
    """Name objects by their mesh, numbered from 0 on for each."""
    seen: Counter[str] = Counter()
    names = []
    for thing in things:
        names.append(f"{_MODELS[thing.shape]}_{seen[thing.shape]}")
        seen[thing.shape] += 1
    return names


def _relationships(
    places: np.ndarray, directions: dict[str, np.ndarray]
) -> dict[str, list[list[int]]]:
    """List, for each direction and object, the objects at least 0.2 further, as in CLEVR."""
    relationships = {}
    for name in ("behind", "front", "left", "right"):
        along = (places * directions[name]).sum(-1)
        relationships[name] = [np.flatnonzero(along > a + 0.2).tolist() for a in along]
    return relationships
