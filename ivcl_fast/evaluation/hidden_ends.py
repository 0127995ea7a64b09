"""How the snitch is hidden at the end of a video."""

from __future__ import annotations

import math
from typing import NamedTuple

from ivcl_fast.data.formats.cater_frames import frame_count, snitch_place
from ivcl_fast.data.formats.cater_labels import Scene, containers_at_end, snitch_of
from ivcl_fast.evaluation.tracker import AT_THE_SAME_PLACE


class HiddenEnd(NamedTuple):
    """State of a snitch that is hidden when a video ends."""

    cones: int
    """Number of nested cones over the snitch."""
    carried: bool
    """Whether the snitch was moved after it last disappeared."""


def hidden_end(scene: Scene) -> HiddenEnd | None:
    """Return how the snitch is hidden at the end of a scene, or None if it is visible.

    Example::

        >>> hidden_end(data.scene("CATER_new_003000.avi"))
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
    last = frame_count(scene) - 1
    moved = math.dist(snitch_place(scene, min(since, last)), snitch_place(scene, last))
    return HiddenEnd(cones, moved >= AT_THE_SAME_PLACE)
