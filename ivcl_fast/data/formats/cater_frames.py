"""Properties of single frames of a CATER scene (CATER's labels describe the last frame).

They are computed from the locations and movements, so occluded objects count as visible. In videos
with fewer frames than CATER's 301, times are exact to one frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ivcl_fast.data.formats.cater_labels import (
    GRID_HALF_WIDTH,
    Scene,
    cell_label,
    containers_at_end,
    snitch_of,
)


def frame_count(scene: Scene) -> int:
    """Return the number of frames of the scene's video."""
    return len(snitch_of(scene)["locations"])


def snitch_place(scene: Scene, frame: int) -> tuple[float, float]:
    """Return x and y of the snitch in world units."""
    x, y, _ = snitch_of(scene)["locations"][str(frame)]
    return x, y


def snitch_cell(scene: Scene, frame: int, n: int = 6) -> int:
    """Return the snitch's cell on the ``n`` x ``n`` grid; the nearest cell if it is outside."""
    return cell_of(snitch_of(scene), frame, n)


def cell_of(scene_object: Mapping[str, Any], frame: int, n: int) -> int:
    """Return the cell of an object, or the nearest cell if it is outside the grid."""
    place = scene_object["locations"][str(frame)][:2]
    x, y = (min(max(v, -GRID_HALF_WIDTH), GRID_HALF_WIDTH) for v in place)
    return cell_label(x, y, n)


def snitch_hidden(scene: Scene, frame: int) -> bool:
    """Whether the snitch is inside a cone."""
    return snitch_of(scene)["instance"] in contained(scene, frame)


def contained(scene: Scene, frame: int) -> set[str]:
    """Return the instances of the objects inside cones.

    An object is inside from the last frame of the cone's ``_contain`` to the first frame of the
    movement that lifts the cone.
    """
    return set(containers_at_end({"movements": movements_until(scene, frame)}))


def carried(scene: Scene, frame: int) -> set[str]:
    """Return the instances of the objects inside a cone that slides in this frame."""
    around = containers_at_end({"movements": movements_until(scene, frame)})
    found = set()
    for instance in around:
        cone = instance
        while cone in around:
            cone = around[cone]
        if any(m[0] == "_slide" and m[2] < frame <= m[3] for m in scene["movements"][cone]):
            found.add(instance)
    return found


def movements_until(scene: Scene, frame: int) -> dict[str, list[list[Any]]]:
    """Return the movements that began before this frame, as if the scene ended there.

    A ``_contain`` that has not ended becomes the ``_pick_place`` with which it begins.
    """
    return {
        instance: [
            ["_pick_place", None, start, end]
            if action == "_contain" and end > frame
            else [action, other, start, end]
            for action, other, start, end in movements
            if start < frame
        ]
        for instance, movements in scene["movements"].items()
    }


def visible_cones(scene: Scene, frame: int, n: int = 6) -> list[int]:
    """Return the cell of each cone that is not inside another one, in the order of objects."""
    inside = contained(scene, frame)
    cones = [o for o in scene["objects"] if o["shape"] == "cone" and o["instance"] not in inside]
    return [cell_of(o, frame, n) for o in cones]
