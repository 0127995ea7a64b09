"""What is true at one frame of a CATER scene; the labels speak of the last frame alone.

By the scene's locations and movements: what stands in another's shadow counts as seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cater_labels import GRID_HALF_WIDTH, Scene, _containers_at_end, cell_label

ATTRIBUTES = {
    "shape": ("cube", "sphere", "cylinder", "cone"),
    "color": ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
    "size": ("small", "medium", "large"),
    "material": ("rubber", "metal"),
}
"""Of all objects but the snitch, which is there in every scene."""


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
    x, y = (min(max(v, -GRID_HALF_WIDTH), GRID_HALF_WIDTH) for v in snitch_place(scene, frame))
    return cell_label(x, y, n)


def snitch_hidden(scene: Scene, frame: int) -> bool:
    """Whether the snitch is inside a cone."""
    return snitch_of(scene)["instance"] in contained(scene, frame)


def contained(scene: Scene, frame: int) -> set[str]:
    """The instances of the objects inside cones.

    From the last frame of the cone's ``_contain`` to the first of the movement that lifts it.
    """
    return set(_containers_at_end({"movements": movements_until(scene, frame)}))


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


def attributes_seen(scene: Scene, frame: int) -> dict[str, list[bool]]:
    """By attribute, for each of its values, whether an object outside of cones has it.

    The snitch does not count.
    """
    inside = contained(scene, frame)
    seen = [o for o in scene["objects"] if o["shape"] != "spl" and o["instance"] not in inside]
    return {
        attribute: [any(o[attribute] == value for o in seen) for value in values]
        for attribute, values in ATTRIBUTES.items()
    }
