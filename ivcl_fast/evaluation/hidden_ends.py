"""Groups of clips that end with a hidden snitch, by how and for how long it has been hidden."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ivcl_fast.data.formats.cater_frames import frame_count, snitch_place
from ivcl_fast.data.formats.cater_labels import Scene, containers_at_end, snitch_of
from ivcl_fast.evaluation.tracker import AT_THE_SAME_PLACE

if TYPE_CHECKING:
    from ivcl_fast.data.datamodule import DataModule
    from ivcl_fast.evaluation.evaluate import Evaluation


class HiddenEnd(NamedTuple):
    """State of a snitch that is hidden when a video ends."""

    share: float
    """Fraction of the video since the snitch last disappeared."""
    cones: int
    """Number of nested cones over the snitch."""
    carried: bool
    """Whether the snitch was moved after it disappeared."""


KINDS = {
    "hidden for under a third": lambda end: end.share < 1 / 3,
    "hidden for one to two thirds": lambda end: 1 / 3 <= end.share < 2 / 3,
    "hidden for over two thirds": lambda end: end.share >= 2 / 3,
    "in one cone": lambda end: end.cones == 1,
    "in nested cones": lambda end: end.cones > 1,
    "not carried": lambda end: not end.carried,
    "carried": lambda end: end.carried,
}
"""Groups of clips by name; times are fractions of the video."""


def hidden_end(scene: Scene) -> HiddenEnd | None:
    """Return how the snitch is hidden at the end of a scene, or None if it is visible.

    Example::

        >>> hidden_end(data.scene("CATER_new_003000.avi"))
        HiddenEnd(share=0.65, cones=1, carried=True)
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
    first = min(since, last)
    moved = math.dist(snitch_place(scene, first), snitch_place(scene, last))
    return HiddenEnd((last - first) / max(last, 1), cones, moved >= AT_THE_SAME_PLACE)


def kinds_of_hidden_ends(data: DataModule, evaluation: Evaluation) -> dict[str, list[str]]:
    """Return the names of the clips in each group of :data:`KINDS`, without empty groups.

    Returns ``{}`` if ``evaluation`` does not record which clips end with a hidden snitch.
    """
    if evaluation.hidden is None:
        return {}
    ends = {name: hidden_end(data.scene(name)) for name in evaluation.names}
    kinds = {
        kind: [name for name, end in ends.items() if end is not None and is_of(end)]
        for kind, is_of in KINDS.items()
    }
    return {kind: names for kind, names in kinds.items() if names}
