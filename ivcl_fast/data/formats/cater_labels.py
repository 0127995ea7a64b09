"""The labels of CATER, computed from scenes.

A *scene* is the dict of ``scenes/<video>.json``: ``objects`` (with ``shape``, ``instance`` and
``locations``, world ``[x, y, z]`` by frame) and ``movements`` (by instance, a list of ``[action,
other instance or None, first frame, last frame]``). The rules are those of CATER's label
generator and apply to published and synthetic scenes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from ivcl_fast.errors import UserError

Scene = Mapping[str, Any]

GRID_HALF_WIDTH = 3.0
"""Objects are placed at x and y between -3 and 3 (world units)."""
OUTSIDE = 0.05
"""Distance that an object may be outside before it moves: more than the offset of its mesh."""

ACTION_CLASSES: tuple[tuple[str, str], ...] = (
    ("sphere", "_slide"),
    ("sphere", "_pick_place"),
    ("spl", "_slide"),
    ("spl", "_pick_place"),
    ("spl", "_rotate"),
    ("cylinder", "_pick_place"),
    ("cylinder", "_slide"),
    ("cylinder", "_rotate"),
    ("cube", "_slide"),
    ("cube", "_pick_place"),
    ("cube", "_rotate"),
    ("cone", "_contain"),
    ("cone", "_pick_place"),
    ("cone", "_slide"),
)
"""The 14 classes of ``actions_present``: (shape, action). ``spl`` is the snitch."""

_ORDERS = ("before", "during", "after")
_MIRRORED = {"before": "after", "during": "during", "after": "before"}


def _order_classes() -> tuple[tuple[tuple[str, str], tuple[str, str], str], ...]:
    """List every (action, action, order), without those that mirror an earlier one."""
    kept: dict[tuple[tuple[str, str], tuple[str, str], str], None] = {}
    for first, second, order in product(ACTION_CLASSES, ACTION_CLASSES, _ORDERS):
        if (second, first, _MIRRORED[order]) not in kept:
            kept[first, second, order] = None
    return tuple(kept)


ORDER_CLASSES = _order_classes()
"""The 301 classes of ``actions_order_uniq``: (action class, action class, order)."""

_ACTION_INDEX = {name: index for index, name in enumerate(ACTION_CLASSES)}
_ORDER_TABLE = np.full((len(ACTION_CLASSES), len(ACTION_CLASSES), len(_ORDERS)), -1)
"""The class of two actions and their order, -1 if there is none."""
for _label, (_first, _second, _name) in enumerate(ORDER_CLASSES):
    _place = _ACTION_INDEX[_first], _ACTION_INDEX[_second], _ORDERS.index(_name)
    _ORDER_TABLE[_place] = _label


def cell_label(x: float, y: float, n: int = 6) -> int:
    """Return the cell, ``row * n + column``, of a world position on the ``n`` x ``n`` grid.

    A snitch that has not moved may be up to :data:`OUTSIDE` beyond the border; it belongs to the
    nearest cell. (CATER's lists give it a cell of another row.) Raises :class:`UserError` for a
    position farther outside.
    """
    if not max(abs(x), abs(y)) <= GRID_HALF_WIDTH + OUTSIDE:
        raise UserError(f"position: expected x and y from -3 to 3, got ({x}, {y})")
    scale = n / (2 * GRID_HALF_WIDTH)
    column, row = (min(max(math.floor(v * scale) + n // 2, 0), n - 1) for v in (x, y))
    return row * n + column


def localize_label(scene: Scene, n: int = 6) -> int:
    """Return the cell of the snitch in the last frame (``localize``: n = 6, else 4 or 8)."""
    x, y, _ = _last_location(snitch_of(scene))
    return cell_label(x, y, n)


def actions_present(scene: Scene) -> list[int]:
    """Return the indices into :data:`ACTION_CLASSES` of the actions that occur, ascending."""
    seen = {(shape, action) for shape, action, _, _ in _movements(scene)}
    return [index for index, name in enumerate(ACTION_CLASSES) if name in seen]


def actions_order(scene: Scene) -> list[int]:
    """Return the indices into :data:`ORDER_CLASSES` that any two movements satisfy, ascending."""
    movements = [m for m in _movements(scene) if m[:2] in _ACTION_INDEX]
    actions = np.array([_ACTION_INDEX[m[:2]] for m in movements], dtype=np.intp)
    start, end = (np.array([m[i] for m in movements]) for i in (2, 3))
    before, after = end[:, None] <= start, start[:, None] >= end
    order = np.where(before, 0, np.where(after, 2, 1))
    classes = _ORDER_TABLE[actions[:, None], actions, order]
    classes[np.diag_indices(len(movements))] = -1  # a movement has no order with itself
    return [label for label in np.unique(classes).tolist() if label >= 0]


def hidden_at_end(scene: Scene) -> bool:
    """Whether the snitch is inside a cone when the video ends, computed from the movements."""
    return snitch_of(scene)["instance"] in containers_at_end(scene)


def snitch_of(scene: Scene) -> Mapping[str, Any]:
    """Return the snitch, the object of the task ``localize``."""
    return next(o for o in scene["objects"] if o["shape"] == "spl")


def _last_location(scene_object: Mapping[str, Any]) -> list[float]:
    locations = scene_object["locations"]
    return locations[max(locations, key=int)]


def _movements(scene: Scene) -> list[tuple[str, str, int, int]]:
    """List the movements as (shape, action, first frame, last frame)."""
    shapes = {o["instance"]: o["shape"] for o in scene["objects"]}
    return [
        (shapes[instance], action, start, end)
        for instance, movements in scene["movements"].items()
        for action, _, start, end in movements
        if action != "_no_op"
    ]


def containers_at_end(scene: Scene) -> dict[str, str]:
    """Return the cone around each object that ends inside one; nested cones form a chain.

    A cone contains an object from the end of its ``_contain`` until it is lifted.
    """
    events = []
    for instance, movements in scene["movements"].items():
        for action, other, start, end in movements:
            if action in ("_pick_place", "_contain"):
                events.append((start, instance, None))
            if action == "_contain":
                events.append((end, instance, other))
    containers: dict[str, str] = {}
    for _, instance, contained in sorted(events, key=lambda event: event[0]):
        if contained is None:
            containers = {k: v for k, v in containers.items() if v != instance}
        else:
            containers[contained] = instance
    return containers
