"""A tracker with perfect sight: how well the snitch can be localised by rules from a clip's frames.

It reads from the scene what every sampled frame shows: the objects in view, and their places. What
it scores is attainable without knowing what happens between the frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene, snitch_of

AT_THE_SAME_PLACE = 0.5
"""Distance, in world units, within which two objects, or one at two times, are at one place."""

Place = tuple[float, float]


def track_snitch(scene: Scene, frames: Iterable[int], n: int = 6) -> int:
    """Return the cell of the ``n`` x ``n`` grid where the rules expect the snitch in the end.

    A snitch that has disappeared is under the cone that now stands where it was last seen; if none
    does, because the cone has moved on, under the nearest of those that have moved. From then on it
    is where that cone is, and a cone that disappears is followed in the same way.

    Args:
        scene: a scene of CATER, which has no snitch that leaves the grid.
        frames: the frames that are seen, ascending; the last one is asked about.

    Example::

        >>> track_snitch(scene, frame_ids(frame_count(scene), 16).tolist())
        21
    """
    snitch = snitch_of(scene)
    cones = {o["instance"]: o for o in scene["objects"] if o["shape"] == "cone"}
    followed = [snitch["instance"]]  # the snitch, the cone around it, the cone around that, ...
    before: dict[str, Place] = {}  # places of what was in view in the frame before
    for frame in frames:
        hidden = cater_frames.contained(scene, frame)
        places = {
            o["instance"]: (o["locations"][str(frame)][0], o["locations"][str(frame)][1])
            for o in (snitch, *cones.values())
            if o["instance"] not in hidden
        }
        for depth, instance in enumerate(followed):
            if instance in places:
                del followed[depth + 1 :]
                break
        else:
            lost = before.get(followed[-1])
            if lost is not None and (cone := _container(lost, places, before)):
                followed.append(cone)
        before = places
    x, y = before.get(followed[-1], (0.0, 0.0))
    return cater_frames.cell_of({"locations": {"0": (x, y)}}, 0, n)


def _container(lost: Place, cones: dict[str, Place], before: dict[str, Place]) -> str | None:
    """Return which of the ``cones`` in view covers what was last seen at ``lost``."""
    if not cones:
        return None
    nearest = min(cones, key=lambda cone: math.dist(cones[cone], lost))
    if math.dist(cones[nearest], lost) < AT_THE_SAME_PLACE:
        return nearest
    moved = {cone: place for cone, place in cones.items() if before.get(cone) != place}
    return min(moved or cones, key=lambda cone: math.dist(cones[cone], lost))
