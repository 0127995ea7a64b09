"""What is true at one frame of a CATER scene; the labels speak of the last frame alone.

By the scene's locations and movements: what stands behind another object counts as seen. Scenes of
videos with fewer frames than CATER's 301 tell the times of movements to within a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ivcl_fast.data.formats.cater_labels import (
    GRID_HALF_WIDTH,
    Scene,
    cell_label,
    containers_at_end,
)

ATTRIBUTES = {
    "shape": ("cube", "sphere", "cylinder", "cone"),
    "color": ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
}
"""What tells objects apart. (Of sizes and materials nearly every scene has all.)"""


def frame_count(scene: Scene) -> int:
    """Frames of the scene's video."""
    return len(snitch_of(scene)["locations"])


def snitch_of(scene: Scene) -> Mapping[str, Any]:
    """The object that ``localize`` asks for."""
    return next(o for o in scene["objects"] if o["shape"] == "spl")


def snitch_place(scene: Scene, frame: int) -> tuple[float, float]:
    """Where on the floor the snitch is, or above which place: x and y, in world units."""
    x, y, _ = snitch_of(scene)["locations"][str(frame)]
    return x, y


def snitch_cell(scene: Scene, frame: int, n: int = 6) -> int:
    """The cell of the ``n`` x ``n`` grid that the snitch is in; the nearest if it is outside."""
    return cell_of(snitch_of(scene), frame, n)


def cell_of(scene_object: Mapping[str, Any], frame: int, n: int) -> int:
    """The cell that an object is in, or above; the nearest if it is outside the grid."""
    place = scene_object["locations"][str(frame)][:2]
    x, y = (min(max(v, -GRID_HALF_WIDTH), GRID_HALF_WIDTH) for v in place)
    return cell_label(x, y, n)


def snitch_hidden(scene: Scene, frame: int) -> bool:
    """Whether the snitch is inside a cone."""
    return snitch_of(scene)["instance"] in contained(scene, frame)


def contained(scene: Scene, frame: int) -> set[str]:
    """The instances of the objects inside cones.

    From the last frame of the cone's ``_contain`` to the first of the movement that lifts it.
    """
    return set(containers_at_end({"movements": movements_until(scene, frame)}))


def movements_until(scene: Scene, frame: int) -> dict[str, list[list[Any]]]:
    """The scene's movements as if it ended with this frame.

    Those that began before it; a ``_contain`` under way is the ``_pick_place`` it begins with.
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
    """The cell of every cone that is not inside another one, in the order of the objects."""
    inside = contained(scene, frame)
    cones = [o for o in scene["objects"] if o["shape"] == "cone" and o["instance"] not in inside]
    return [cell_of(o, frame, n) for o in cones]


def attributes_present(scene: Scene) -> dict[str, list[bool]]:
    """By attribute, for each of its values, whether an object has it, seen or not.

    The snitch does not count.
    """
    return attributes_of(scene["objects"])


def attributes_seen(scene: Scene, frame: int) -> dict[str, list[bool]]:
    """As :func:`attributes_present`, of the objects outside of cones alone."""
    inside = contained(scene, frame)
    return attributes_of([o for o in scene["objects"] if o["instance"] not in inside])


def attributes_of(objects: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    """Which values some object has that is not the snitch."""
    return {
        attribute: [any(o["shape"] != "spl" and o[attribute] == v for o in objects) for v in values]
        for attribute, values in ATTRIBUTES.items()
    }
