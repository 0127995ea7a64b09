"""Where the snitch is at the end of a scene: an oracle tracker, and how cones hide it.

The tracker localises the snitch by rules on the ground-truth objects of a clip's frames. It reads
the visible objects and their places in each sampled frame from the scene. Its score is attainable
without knowing what happens between the frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater_labels import Scene, containers_at_end, snitch_of

AT_THE_SAME_PLACE = 0.5
"""Distance in world units within which two positions count as the same place."""

Place = tuple[float, float]


def track_snitch(scene: Scene, frames: Iterable[int], n: int = 6) -> int:
    """Return the cell of the ``n`` x ``n`` grid in which the rules expect the snitch at the end.

    A snitch that disappears is assumed to be under the cone at its last visible place or, if there
    is none because the cone has moved, under the nearest cone that has moved. From then on the
    rules follow that cone, and in the same way the cone that covers it.

    Args:
        scene: a scene of CATER.
        frames: the visible frames, ascending; the result is for the last one.

    Example::

        >>> track_snitch(scene, frame_ids(frame_count(scene), 16).tolist())
        21
    """
    snitch = snitch_of(scene)
    cones = {o["instance"]: o for o in scene["objects"] if o["shape"] == "cone"}
    followed = [snitch["instance"]]  # the snitch, the cone around it, the cone around that, ...
    before: dict[str, Place] = {}  # places of the objects visible in the previous frame
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
    """Return which visible cone covers the object last seen at ``lost``."""
    if not cones:
        return None
    nearest = min(cones, key=lambda cone: math.dist(cones[cone], lost))
    if math.dist(cones[nearest], lost) < AT_THE_SAME_PLACE:
        return nearest
    moved = {cone: place for cone, place in cones.items() if before.get(cone) != place}
    return min(moved or cones, key=lambda cone: math.dist(cones[cone], lost))


class HiddenEnd(NamedTuple):
    """State of a snitch that is hidden when a video ends."""

    cones: int
    """Number of nested cones over the snitch."""
    carried: bool
    """Whether the snitch was moved after it last disappeared."""


def hidden_end(scene: Scene) -> HiddenEnd | None:
    """Return how the snitch is hidden at the end of a scene, or None if it is visible.

    Example::

        >>> hidden_end(data.scene("CATER_new_003000"))
        HiddenEnd(cones=1, carried=True)
    """
    snitch, around = snitch_of(scene)["instance"], containers_at_end(scene)
    if snitch not in around:
        return None
    since = max(
        end
        for action, other, _, end in scene["movements"][around[snitch]]
        if action == "_contain" and other == snitch
    )
    cones, inside = 0, snitch
    while inside in around:
        cones, inside = cones + 1, around[inside]
    last = cater_frames.frame_count(scene) - 1
    start, end = (cater_frames.snitch_place(scene, frame) for frame in (min(since, last), last))
    return HiddenEnd(cones, math.dist(start, end) >= AT_THE_SAME_PLACE)
