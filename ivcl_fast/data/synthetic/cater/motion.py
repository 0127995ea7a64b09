"""Motion of the objects of a CATER video, by the rules of the published generator.

Time is divided into slots. In every slot all objects move, in random order, to positions that are
free at its end; in half of the slots a cone first covers another object. Nested objects form a
*group*, which slides together until its outermost cone is lifted off.

Collisions are tested between the bounding balls of objects, along linear paths. Pictures show the
same movements with Blender's easing (:mod:`ivcl_fast.data.synthetic.easing`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ivcl_fast.data.synthetic.easing import interpolate
from ivcl_fast.data.synthetic.placing import APART
from ivcl_fast.data.synthetic.scene import Thing

LAST_FRAME = 300
"""CATER's timeline: frames 0 to 300."""
REACH = 3.0
"""Objects are placed with x and y between -3 and 3."""

_LAST_SLOT = 270
_DELAY = 10
_SHORTEST, _LONGEST = 20, 30
_WINDOW = _DELAY + _LONGEST + 1
"""All movements of a slot end within this number of frames after any of them begins."""
_LIFT = 2.0
_QUARTER_TURN = 3.14 / 2
_PAIRS = 100
_TRIES = 102
_FIRST_TRIES = 16
"""Number of tries in the first batch, which is nearly always enough."""

_ACTIONS = ("_slide", "_pick_place", "_rotate")
_PICK_PLACE, _ROTATE = 1, 2

_CAN_ROTATE = ("cube", "cylinder", "spl")
_CONTAINABLE = ("cone", "sphere", "spl")


Key = tuple[int, tuple[float, ...]]
"""A frame and the value in that frame."""


class Movement(NamedTuple):
    """One entry of a scene's ``movements``; ``other`` is the index of an object."""

    action: str
    other: int | None
    start: int
    end: int


@dataclass(frozen=True)
class Motion:
    """How n objects move in CATER's 301 frames."""

    movements: tuple[tuple[Movement, ...], ...]
    """Movements of each object, in chronological order."""
    locations: np.ndarray
    """float64 ``[301, n, 3]``: linear in time, as in the scene files."""
    covered: np.ndarray
    """bool ``[301, n]``: whether the object is inside a cone that stands on the floor."""
    keys: tuple[tuple[Key, ...], ...]
    """Key frames of each object with its locations; pictures are eased between them."""
    turns: tuple[tuple[Key, ...], ...]
    """Key frames of each object with its rotation about y in radians."""

    def eased(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the eased locations and rotations about y in frames ``[F]``.

        float64 ``[F, n, 3]`` and ``[F, n]``.
        """
        places, turned = (_interpolated(keys, frames) for keys in (self.keys, self.turns))
        return places, turned[..., 0]


def _interpolated(tracks: Sequence[Sequence[Key]], frames: np.ndarray) -> np.ndarray:
    numbers = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
    times = np.array([time for track in tracks for time, _ in track])
    values = np.array([value for track in tracks for _, value in track])
    return interpolate(numbers, times, values, len(tracks), frames).swapaxes(0, 1)


def draw_motion(
    rng: np.random.Generator, things: Sequence[Thing], places: np.ndarray
) -> Motion | None:
    """Generate movements of objects with centres ``places`` ``[n, 3]`` in the first frame.

    Returns None if objects would collide; the published videos have no such scenes.
    """
    world = _World(rng, things, places)
    return world.motion() if world.is_sane() and world.play() else None


class _World:
    def __init__(self, rng: np.random.Generator, things: Sequence[Thing], places: np.ndarray):
        n = len(things)
        self.rng, self.things = rng, things
        radii = np.array([thing.radius for thing in things])
        self.reach = (radii[:, None] + radii + APART) ** 2
        """Smallest squared distance of two centres."""
        self.paths = np.repeat(places.T[:, :, None], LAST_FRAME + 1, axis=2)
        """float64 ``[3, n, 301]``."""
        self.covered = np.zeros((LAST_FRAME + 1, n), dtype=bool)
        self.groups = [[i] for i in range(n)]
        """The outermost object of each group comes first."""
        self.movements: list[list[Movement]] = [[] for _ in things]
        self.keys: list[list[Key]] = [[] for _ in things]
        self.turns: list[list[Key]] = [[(0, (0.0,))] for _ in things]

    def motion(self) -> Motion:
        for i, keys in enumerate(self.keys):
            if not keys:
                keys.append((0, tuple(self.place(i))))
        return Motion(
            tuple(map(tuple, self.movements)),
            self.paths.transpose(2, 1, 0).copy(),
            self.covered,
            tuple(map(tuple, self.keys)),
            tuple(map(tuple, self.turns)),
        )

    def place(self, i: int) -> list[float]:
        """Return where an object is after its last movement."""
        return self.paths[:, i, LAST_FRAME].tolist()

    def is_sane(self) -> bool:
        """Whether objects are apart in the first frame; offsets have moved them since placing."""
        places = self.paths[:, :, 0]
        apart = ((places[:, :, None] - places[:, None]) ** 2).sum(0)
        return bool(((apart >= self.reach) | np.eye(len(apart), dtype=bool)).all())

    def play(self) -> bool:
        """Fill the timeline; return whether there are no collisions."""
        slot = 0
        while slot <= _LAST_SLOT:
            cone, end = None, 0
            if self.rng.random() < 0.5:
                pair = self.draw_pair()
                if pair is None:
                    continue
                ((start, end),) = self.draw_times(slot, 1)
                if not self.contain(*pair, start, end):
                    return False
                cone = pair[0][0]
            slot = max(end, self.move_all(slot, cone)) + 1
        return True

    def draw_times(self, slot: int, count: int) -> list[tuple[int, int]]:
        """Sample the first and the last frames of movements."""
        starts = slot + self.rng.integers(_DELAY + 1, size=count)
        ends = starts + self.rng.integers(_SHORTEST, _LONGEST + 1, size=count)
        return list(zip(starts.tolist(), np.minimum(ends, LAST_FRAME).tolist(), strict=True))

    # --- Covering

    def draw_pair(self) -> tuple[list[int], list[int]] | None:
        """Sample a cone and a group that it can cover; None if 100 tries find no such pair."""
        able = [(a, b) for a in self.groups for b in self.groups if self.can_contain(a, b)]
        share = len(able) / (len(self.groups) * (len(self.groups) - 1))
        if self.rng.random() < (1.0 - share) ** _PAIRS:
            return None
        return able[int(self.rng.integers(len(able)))]

    def can_contain(self, group: list[int], other: list[int]) -> bool:
        """Whether the first group is a cone that has room on top of the second one."""
        cone, target = group[0], other[0]
        if (
            len(group) > 1
            or self.things[cone].shape != "cone"
            or self.things[target].shape not in _CONTAINABLE
            or self.things[cone].radius <= self.things[target].radius
        ):
            return False
        x, y, _ = self.place(target)
        tops = [g[0] for g in self.groups if g not in (group, other)]
        there = np.array([x, y, self.place(cone)[2]])[:, None]
        apart = ((self.paths[:, tops, LAST_FRAME] - there) ** 2).sum(0)
        return bool((apart >= self.reach[cone, tops]).all())

    def contain(self, group: list[int], other: list[int], start: int, end: int) -> bool:
        """Put a cone over a group; return False if there is a collision."""
        cone, target = group[0], other[0]
        goal = self.paths[:2, target, LAST_FRAME]
        path = self.path(cone, "_contain", goal, start, end)
        if self.touches(cone, path, start, [cone, *other]):
            return False
        self.move(cone, path, Movement("_contain", target, start, end))
        self.covered[end:, other] = True
        group += other
        self.groups.remove(other)
        return True

    # --- Other movements

    def move_all(self, slot: int, already: int | None) -> int:
        """Move all groups but the one with the cone ``already``; returns the last frame."""
        order = [self.groups[i] for i in self.rng.permutation(len(self.groups))]
        order = [group for group in order if group[0] != already]
        times = self.draw_times(slot, len(order))
        lifted = [g for g, when in zip(order, times, strict=True) if self.move_group(g, *when)]
        for group in lifted:
            self.groups.append(group[1:])
            del group[1:]
        return max(end for _, end in times)

    def move_group(self, group: list[int], start: int, end: int) -> bool:
        """Move a group to a free place; returns whether its outermost cone was lifted off."""
        top = group[0]
        actions = _ACTIONS if self.things[top].shape in _CAN_ROTATE else _ACTIONS[:2]
        drawn = self.rng.integers(len(actions), size=_TRIES)
        goals = self.rng.uniform(-REACH, REACH, (_TRIES, 2))
        for found in self.free_tries(group, drawn, goals):
            action = actions[drawn[found]]
            lifts = action == "_pick_place" and len(group) > 1
            names = [action, *["_no_op" if lifts else action] * (len(group) - 1)]
            paths = self.paths_of(group, names, goals[found], start, end)
            if paths is not None:
                break
        else:
            lifts, names = False, ["_no_op"] * len(group)
            paths = [self.path(i, "_no_op", goals[0], start, end) for i in group]
        for i, name, path in zip(group, names, paths, strict=True):
            self.move(i, path, Movement(name, None, start, end))
        if lifts:
            self.covered[start + 1 :, group[1]] = False
        return lifts

    def free_tries(self, group: list[int], drawn: np.ndarray, goals: np.ndarray) -> Iterator[int]:
        """Yield the tries whose goals are free for a group in the end, tested a few at a time."""
        top = group[0]
        for first, last in ((0, _FIRST_TRIES), (_FIRST_TRIES, _TRIES)):
            places, actions = goals[first:last], drawn[first:last]
            free = self.free(top, places, group) | (actions == _ROTATE)
            if len(group) > 1:
                nested = self.free(top, places, [i for i in group if i != group[1]])
                free &= nested | (actions != _PICK_PLACE)
            yield from (first + np.flatnonzero(free)).tolist()

    def free(self, i: int, goals: np.ndarray, group: list[int]) -> np.ndarray:
        """Return at which goals ``[K, 2]`` an object would touch nothing outside its group."""
        there = self.paths[:, :, LAST_FRAME]
        apart = (goals[:, :1] - there[0]) ** 2 + (goals[:, 1:] - there[1]) ** 2
        apart += (there[2, i] - there[2]) ** 2
        apart[:, group] = np.inf
        return (apart >= self.reach[i]).all(axis=1)

    def paths_of(
        self, group: list[int], names: list[str], goal: np.ndarray, start: int, end: int
    ) -> list[np.ndarray] | None:
        """Return the paths of a group's objects; None if one touches anything outside of it."""
        paths = []
        for i, name in zip(group, names, strict=True):
            path = self.path(i, name, goal, start, end)
            if name != "_no_op" and self.touches(i, path, start, group):
                return None
            paths.append(path)
        return paths

    def path(self, i: int, action: str, goal: np.ndarray, start: int, end: int) -> np.ndarray:
        """Return the path of an object from the first frame of a movement: ``[3, window]``."""
        here = self.paths[:, i, LAST_FRAME]
        step = np.array([goal[0] - here[0], goal[1] - here[1], _LIFT])
        profile = _profile(action, end - start)[:, : LAST_FRAME + 1 - start]
        return here[:, None] + step[:, None] * profile

    def touches(self, i: int, path: np.ndarray, start: int, group: list[int]) -> bool:
        """Whether an object touches anything outside its group on a path, or after it."""
        apart = self.paths[:, :, start : start + _WINDOW] - path[:, None]
        apart *= apart
        reach = self.reach[i].copy()
        reach[group] = 0.0
        return bool((apart[0] + apart[1] + apart[2] < reach[:, None]).any())

    def move(self, i: int, path: np.ndarray, movement: Movement) -> None:
        """Record a movement of an object."""
        action, _, start, end = movement
        self.movements[i].append(movement)
        here = x, y, z = tuple(self.place(i))
        self.keys[i].append((start, here))
        if action == "_rotate":
            (turned,) = self.turns[i][-1][1]
            self.turns[i] += [(start, (turned,)), (end, (turned + _QUARTER_TURN,))]
            return
        self.paths[:, i, start : start + _WINDOW] = path
        self.paths[:, i, start + _WINDOW :] = path[:, -1:]
        there = tuple(path[:, -1].tolist())
        if action in ("_pick_place", "_contain"):
            up, down = (start + frames for frames in _lift_frames(end - start))
            high = z + _LIFT
            self.keys[i] += [(up, (x, y, high)), (up + 1, (x, y, high)), (down, (*there[:2], high))]
        self.keys[i].append((end, there))


def _lift_frames(duration: int) -> tuple[int, int]:
    """Return the frames of a movement in which an object has been lifted, and carried across."""
    return math.floor(0.2 * (duration + 1)), math.floor(0.8 * (duration + 1))


@lru_cache(maxsize=256)
def _profile(action: str, duration: int) -> np.ndarray:
    """Return the fraction of the way along x, y and z in each frame: ``[3, window]``.

    It stays at 1 after the object has arrived.
    """
    across, lift = np.zeros(_WINDOW), np.zeros(_WINDOW)
    if action == "_slide":
        across[: duration + 1] = np.linspace(0.0, 1.0, duration + 1)
        across[duration:] = 1.0
    elif action in ("_pick_place", "_contain"):
        up, down = _lift_frames(duration)
        lift[: up + 1] = np.linspace(0.0, 1.0, up + 1)
        lift[up + 1 : down + 1] = 1.0
        lift[down + 1 : duration + 1] = np.linspace(1.0, 0.0, duration - down)
        across[up + 1 : down + 1] = np.linspace(0.0, 1.0, down - up)
        across[down + 1 :] = 1.0
    return np.stack([across, across, lift])
