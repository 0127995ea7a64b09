"""Plans a CATER video: the positions of all objects over CATER's 301 frames.

Time is divided into slots of 20 to 30 frames, in which several objects move at once. The snitch
follows a script: it is covered, carried while hidden, perhaps released, and ends in a cell that was
drawn beforehand. All other objects act at random. The cell, and whether the snitch ends hidden, are
drawn before planning and kept if a plan fails, so that plans that are easy to make are not more
frequent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ivcl_fast.data.synthetic.cater.world import (
    ACTIONS,
    CONTAINABLE,
    LAST_FRAME,
    Thing,
    draw_things,
    ease,
)

SNITCH = 0
_HIDDEN_SHARE = 0.4
_BORDER = 2.9  # centres have to stay within +-3
_GAP = 0.12  # free space kept between two objects
_LIFT = 2.2  # clears the tallest object, a large cylinder that tips over (2.12)
_ACTIVITY = 0.4  # chance that an object acts in a slot
_TRIES = 8  # places tried for a movement before the object stays
_ATTEMPTS = 500


class Movement(NamedTuple):
    """One entry of a scene's ``movements``; ``other`` is the index of an object."""

    action: str
    other: int | None
    start: int
    end: int


@dataclass(frozen=True)
class Plan:
    """A planned video of n objects; frames are those of CATER's timeline."""

    things: tuple[Thing, ...]
    locations: np.ndarray
    """float64 [301, n, 3], centres in world units."""
    yaw: np.ndarray
    """float64 [301, n], rotation about the vertical axis in radians."""
    tilt: np.ndarray
    """float64 [301, n], rotation about the object's own x axis, before ``yaw``, in radians."""
    covered: np.ndarray
    """bool [301, n], whether the object is inside a cone."""
    movements: tuple[tuple[Movement, ...], ...]


def plan_video(seed: int, index: int) -> Plan:
    """Plan a video; the same arguments give the same plan."""
    rng = np.random.default_rng((seed, index))
    cell = int(rng.integers(36))
    hidden = bool(rng.random() < _HIDDEN_SHARE)
    things = draw_things(rng)
    for _ in range(_ATTEMPTS):
        planner = _Planner(things, rng)
        if planner.place() and planner.play(cell, hidden):
            return planner.finish()
    raise RuntimeError(f"no plan found for video {index} of seed {seed}")


class _Planner:
    def __init__(self, things: tuple[Thing, ...], rng: np.random.Generator):
        n = len(things)
        self.things, self.rng = things, rng
        self.footprint = np.array([t.footprint for t in things])
        self.half_height = np.array([t.half_height for t in things])
        self.locations = np.zeros((LAST_FRAME + 1, n, 3))
        self.yaw = np.tile(np.radians([t.rotation for t in things]), (LAST_FRAME + 1, 1))
        self.tilt = np.zeros((LAST_FRAME + 1, n))
        self.covered = np.zeros((LAST_FRAME + 1, n), dtype=bool)
        self.movements: list[list[Movement]] = [[] for _ in things]
        self.container: list[int | None] = [None] * n
        self.busy: set[int] = set()
        self.slot = (0, 0)

    def finish(self) -> Plan:
        movements = tuple(tuple(of_thing) for of_thing in self.movements)
        return Plan(self.things, self.locations, self.yaw, self.tilt, self.covered, movements)

    # --- The script

    def place(self) -> bool:
        """Place all objects apart from one another; returns False if there is no room."""
        for i in range(len(self.things)):
            for _ in range(50):
                x, y = self.rng.uniform(-_BORDER, _BORDER, 2)
                away = np.hypot(*(self.locations[0, :i, :2] - (x, y)).T)
                if np.all(away > self.footprint[:i] + self.footprint[i] + 0.2):
                    self.locations[:, i] = x, y, self.half_height[i]
                    break
            else:
                return False
        return True

    def play(self, cell: int, hidden: bool) -> bool:
        """Fill the timeline; returns whether the snitch ends in ``cell``, ``hidden`` or visible."""
        slots = self._draw_slots()
        never = len(slots)
        covers = hidden or self._chance(0.5)
        cover_at = int(self.rng.integers(1, len(slots) - 4)) if covers else never
        release_at = never if hidden else cover_at + int(self.rng.integers(1, 4))
        arrive_at = int(self.rng.integers(cover_at + 1 if hidden else 3, len(slots) - 1))
        covered_before = arrived = False
        for number, self.slot in enumerate(slots):
            self.busy.clear()
            top = self._outermost(SNITCH)
            inside = top != SNITCH
            if arrived:
                if inside and self._chance(0.1):
                    self._be_covered(top)
                self.busy.add(top)
            elif inside and number >= release_at:
                self._act(top, "_pick_place")
            elif number >= cover_at and not covered_before:
                covered_before = self._be_covered(SNITCH)
            elif number >= arrive_at and inside == hidden:
                arrived = self._go_to_cell(top, cell)
            elif inside:
                if not (self._chance(0.2) and self._be_covered(top)) and self._chance(0.6):
                    self._act(top, "_slide")
            elif self._chance(_ACTIVITY):
                self._act(SNITCH, str(self.rng.choice(ACTIONS["spl"])))
            self.busy |= {SNITCH, self._outermost(SNITCH)}
            self._act_at_random()
        return arrived

    def _draw_slots(self) -> list[tuple[int, int]]:
        slots, start = [], 0
        while start + (length := int(self.rng.integers(20, 31))) <= LAST_FRAME:
            slots.append((start, start + length))
            start += length
        return slots

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _go_to_cell(self, mover: int, cell: int) -> bool:
        """Bring the snitch, or the cone that contains it, to the cell where it has to end."""
        row, column = divmod(cell, 6)
        for _ in range(_TRIES):
            x, y = self.rng.uniform(0.1, 0.9, 2) + np.array((column - 3, row - 3))
            if self._slide(mover, x, y) or (mover == SNITCH and self._pick_place(mover, x, y)):
                return True
        return False

    def _be_covered(self, target: int) -> bool:
        """Cover ``target`` with any cone that is free and large enough."""
        cones = [i for i, thing in enumerate(self.things) if thing.shape == "cone"]
        return any(self._contain(int(cone), target) for cone in self.rng.permutation(cones))

    def _act_at_random(self) -> None:
        for mover in self.rng.permutation(len(self.things)):
            if self._chance(_ACTIVITY):
                self._act(int(mover), str(self.rng.choice(ACTIONS[self.things[mover].shape])))

    # --- Movements: each fills the slot (and returns True, unless it is a turn), or changes nothing

    def _act(self, mover: int, action: str) -> None:
        """Try a movement to a random place."""
        if action == "_rotate":
            self._rotate(mover)
        elif action == "_contain":
            targets = [i for i in range(len(self.things)) if i not in self.busy]
            if targets:
                self._contain(mover, int(self.rng.choice(targets)))
        else:
            move = self._slide if action == "_slide" else self._pick_place
            for _ in range(_TRIES):
                if move(mover, *self.rng.uniform(-_BORDER, _BORDER, 2)):
                    break

    def _slide(self, mover: int, x: float, y: float) -> bool:
        """Slide an object along the floor, with everything inside it."""
        if not self._free(mover):
            return False
        start, end, phase = self._draw_times()
        path = self._path(mover, x, y, phase)
        if self._collides(mover, path, start):
            return False
        for i in (mover, *self._inside(mover)):
            self.locations[start : end + 1, i, :2] = path[:, :2]
            self.locations[end:, i, :2] = path[-1, :2]
            self.movements[i].append(Movement("_slide", None, start, end))
        self.busy.add(mover)
        return True

    def _pick_place(self, mover: int, x: float, y: float) -> bool:
        """Lift an object and put it down elsewhere; what it contained stays behind."""
        return self._free(mover) and self._carry_by_air(mover, x, y, None)

    def _contain(self, cone: int, target: int) -> bool:
        """Put a cone over a smaller object."""
        thing, other = self.things[cone], self.things[target]
        able = (
            thing.shape == "cone"
            and other.shape in CONTAINABLE
            and thing.sized > other.sized
            and self._free(cone)
            and self._free(target)
            and not self._inside(cone)
        )
        if not able or (other.shape == "cone" and not self._may_lose_a_cone(target)):
            return False
        x, y = self.locations[self.slot[1], target, :2]
        if not self._carry_by_air(cone, x, y, target):
            return False
        self.busy.add(target)
        return True

    def _rotate(self, mover: int) -> None:
        """Turn by 90 degrees: cubes and the snitch about the vertical, cylinders to their side."""
        if not self._free(mover):
            return
        start, end, phase = self._draw_times()
        sign = 1.0 if self._chance(0.5) else -1.0
        turn = math.pi / 2 * ease(phase)
        if self.things[mover].shape == "cylinder":
            tilt = self.tilt[start, mover]
            turned = turn if tilt == 0.0 else math.pi / 2 - turn
            height = self.half_height[mover] * (np.abs(np.cos(turned)) + np.abs(np.sin(turned)))
            self.tilt[start : end + 1, mover], self.tilt[end:, mover] = turned, turned[-1]
            self.locations[start : end + 1, mover, 2] = height
            self.locations[end:, mover, 2] = self.half_height[mover]
        else:
            turned = self.yaw[start, mover] + sign * turn
            self.yaw[start : end + 1, mover], self.yaw[end:, mover] = turned, turned[-1]
        self.movements[mover].append(Movement("_rotate", None, start, end))
        self.busy.add(mover)

    def _carry_by_air(self, mover: int, x: float, y: float, target: int | None) -> bool:
        start, end, phase = self._draw_times()
        path = self._path(mover, x, y, (phase - 0.25) / 0.5)
        path[:, 2] += _LIFT * ease(np.minimum(phase, 1.0 - phase) / 0.3)
        inside = self._inside(mover)
        if self._collides(mover, path, start, target):
            return False
        released = [i for i in inside if self.container[i] == mover]
        for i in released:
            if self._near(mover, i, path[-1]):
                return False
            self.container[i] = None
        for i in inside:
            # Objects inside a released cone stay covered.
            self.covered[start:, i] = self.container[i] is not None
            self.movements[i].append(Movement("_no_op", None, start, end))
            self.busy.add(i)
        self.locations[start : end + 1, mover], self.locations[end:, mover] = path, path[-1]
        if target is not None:
            self.container[target] = mover
            self.covered[end:, target] = True
        action = "_pick_place" if target is None else "_contain"
        self.movements[mover].append(Movement(action, target, start, end))
        self.busy.add(mover)
        return True

    # --- Constraints

    def _draw_times(self) -> tuple[int, int, np.ndarray]:
        """Draw the first and last frame in the slot; also return each frame's phase, 0 to 1."""
        start = self.slot[0] + int(self.rng.integers(0, 4))
        end = self.slot[1] - int(self.rng.integers(0, 3))
        return start, end, np.arange(end - start + 1) / (end - start)

    def _path(self, mover: int, x: float, y: float, phase: np.ndarray) -> np.ndarray:
        origin = self.locations[self.slot[0], mover]
        path = np.repeat(origin[None], len(phase), axis=0)
        path[:, :2] += ease(phase)[:, None] * ((x, y) - origin[:2])
        return path

    def _inside(self, cone: int) -> list[int]:
        """List everything inside a cone, at any depth."""
        held = [i for i, container in enumerate(self.container) if container == cone]
        return held + [deeper for i in held for deeper in self._inside(i)]

    def _outermost(self, i: int) -> int:
        while (container := self.container[i]) is not None:
            i = container
        return i

    def _free(self, i: int) -> bool:
        return i not in self.busy and self.container[i] is None

    def _may_lose_a_cone(self, target: int) -> bool:
        """Whether a cone may be covered: three stay visible, unless it contains the snitch."""
        in_view = [
            i
            for i, thing in enumerate(self.things)
            if thing.shape == "cone" and self.container[i] is None
        ]
        return len(in_view) > 3 or target == self._outermost(SNITCH)

    def _collides(
        self, mover: int, path: np.ndarray, start: int, target: int | None = None
    ) -> bool:
        """Whether the path, which begins at ``start``, touches any other object during the slot.

        The object stays at the end of the path for the rest of the slot.
        """
        begin, stop = self.slot[0], self.slot[1] + 1
        # Objects that are covered or released in this slot are in the open for a part of it.
        others = [
            i
            for i, container in enumerate(self.container)
            if i not in (mover, target) and (container is None or not self.covered[begin, i])
        ]
        whole = np.empty((stop - begin, 3))
        whole[: start - begin] = path[0]
        whole[start - begin : start - begin + len(path)] = path
        whole[start - begin + len(path) :] = path[-1]
        apart = self.locations[begin:stop, others] - whole[:, None]
        reach = self.footprint[others] + self.footprint[mover] + _GAP
        height = self.half_height[others] + self.half_height[mover]
        touching = apart[..., 0] ** 2 + apart[..., 1] ** 2 < reach**2
        return bool(np.any(touching & (np.abs(apart[..., 2]) < height)))

    def _near(self, mover: int, i: int, place: np.ndarray) -> bool:
        reach = self.footprint[i] + self.footprint[mover] + _GAP
        return bool(np.hypot(*(self.locations[self.slot[0], i, :2] - place[:2])) < reach)
