"""A direct simulation of the published rules of CATER's generator, and measures of its videos.

It follows the rules one by one, frame by frame and try by try, and shares no code with
:mod:`ivcl_fast.data.synthetic`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ivcl_fast.data.formats import cater_frames, cater_labels
from ivcl_fast.evaluation.tracker import hidden_end

# --- The direct simulation -----------------------------------------------------------------------

Place = tuple[float, float, float]
FRAMES = 301
SIZES = {"small": 0.25, "medium": 0.5, "large": 0.75}
ACROSS, BEHIND = (0.6570, 0.7539), (-0.7539, 0.6570)
"""Directions on the floor of a camera at (7.4811, -6.5076) that looks at (0.0143, 0.0026)."""


class Dropped(Exception):
    """The scene fails a check, and the published generator drops it."""


@dataclass
class Ball:
    """An object of the simulation."""

    shape: str
    size: float
    path: list[Place]
    contains: list[Ball | None] = field(default_factory=lambda: [None] * FRAMES)
    moves: list[tuple[str, Ball | None, int, int]] = field(default_factory=list)

    def holds(self, other: Ball, frame: int) -> bool:
        inside = self.contains[frame]
        return inside is not None and (inside is other or inside.holds(other, frame))


def overlap(a: Place, a_size: float, b: Place, b_size: float) -> bool:
    return math.dist(a, b) - a_size - b_size < 0.25


def simulate(rng: random.Random) -> dict[str, Any]:
    """Simulate a video that passes all checks, and describe it as in a scene file."""
    while True:
        try:
            balls = place_all(rng, rng.randint(5, 10))
            move_all(rng, balls)
        except Dropped:
            continue
        names = {id(ball): f"{ball.shape}_{i}" for i, ball in enumerate(balls)}
        names[id(None)] = None
        return {
            "objects": [
                {
                    "shape": ball.shape,
                    "instance": names[id(ball)],
                    "locations": {str(t): place for t, place in enumerate(ball.path)},
                }
                for ball in balls
            ],
            "movements": {
                names[id(ball)]: [[a, names[id(other)], s, e] for a, other, s, e in ball.moves]
                for ball in balls
            },
        }


def place_all(rng: random.Random, count: int) -> list[Ball]:
    kinds = [("spl", 0.3), ("cone", SIZES["medium"]), ("cone", SIZES["large"])]
    kinds = kinds[:count]
    while len(kinds) < count:
        shape = rng.choice(["cube", "sphere", "cylinder", "cone"])
        kinds.append((shape, rng.choice(list(SIZES.values()))))
    found: list[tuple[float, float, float]] = []
    for _, size in kinds:
        for _ in range(50):
            x, y = rng.uniform(-3, 3), rng.uniform(-3, 3)
            if all(fits(x - a, y - b, size + other) for a, b, other in found):
                found.append((x, y, size))
                break
        else:
            return place_all(rng, count)
    moved = {"cone": (-0.0339, -0.0289, 0.1809), "spl": (-0.0142, 0.0029, 0.0421)}
    balls = []
    for (shape, size), (x, y, _) in zip(kinds, found, strict=True):
        dx, dy, dz = moved.get(shape, (0.0, 0.0, 0.0))
        balls.append(Ball(shape, size, [(x + dx, y + dy, size + dz)] * FRAMES))
    return balls


def fits(dx: float, dy: float, sizes: float) -> bool:
    along = [abs(dx * way[0] + dy * way[1]) for way in (ACROSS, BEHIND)]
    return math.hypot(dx, dy) - sizes >= 0.25 and min(along) >= 0.4


def move_all(rng: random.Random, balls: list[Ball]) -> None:
    groups = [[ball] for ball in balls]
    check(groups)
    slot = 0
    while slot <= 270:
        if rng.random() < 0.5:
            last = cover_and_move(rng, groups, slot)
        else:
            last = move_singles(rng, groups, slot, None)
        slot = last + 1


def cover_and_move(rng: random.Random, groups: list[list[Ball]], slot: int) -> int:
    for _ in range(100):
        group, other = rng.sample(groups, 2)
        start, end = draw_times(rng, slot)
        cone, target = group[0], other[0]
        if len(group) > 1 or cone.shape != "cone" or target.size >= cone.size:
            continue
        if target.shape not in ("cone", "sphere", "spl"):
            continue
        there = (*target.path[-1][:2], cone.path[-1][2])
        rest = [g[0] for g in groups if g is not group and g is not other]
        if any(overlap(there, cone.size, b.path[end], b.size) for b in rest):
            continue
        record(cone, "_contain", target, pick_place(cone, there, start, end), start, end)
        cone.contains[start:] = [target] * (FRAMES - start)
        check(groups)
        group.extend(other)
        groups[:] = [g for g in groups if g is not other]
        return max(end, move_singles(rng, groups, slot, group))
    return slot - 1


def move_singles(
    rng: random.Random, groups: list[list[Ball]], slot: int, skipped: list[Ball] | None
) -> int:
    order = [g for g in groups if g is not skipped]
    rng.shuffle(order)
    last, split = -1, []
    for group in order:
        start, end = draw_times(rng, slot)
        last = max(last, end)
        if move_group(rng, group, groups, start, end):
            split.append(group)
    for group in split:
        groups.append(group[1:])
        del group[1:]
    check(groups)
    return last


def move_group(
    rng: random.Random, group: list[Ball], groups: list[list[Ball]], start: int, end: int
) -> bool:
    """Move a group; return whether its outermost cone was lifted off."""
    top = group[0]
    others = [ball for g in groups if g is not group for ball in g]
    for _ in range(102):
        if len(group) > 1 or top.shape in ("cone", "sphere"):
            action = rng.choice(["_slide", "_pick_place"])
        else:
            action = rng.choice(["_slide", "_pick_place", "_rotate"])
        x, y = rng.uniform(-3, 3), rng.uniform(-3, 3)
        movers = group if action == "_slide" else [top]
        paths = []
        for ball in movers:
            there = (x, y, ball.path[-1][2])
            if action == "_slide":
                paths.append(line(ball.path[-1], there, end - start + 1))
            elif action == "_pick_place":
                paths.append(pick_place(ball, there, start, end))
            else:
                paths.append([ball.path[-1]] * (end - start + 1))
        clean = all(is_free(*pair, others, start) for pair in zip(movers, paths, strict=True))
        splits = action == "_pick_place" and len(group) > 1
        if splits and overlap(paths[0][-1], top.size, group[1].path[-1], group[1].size):
            clean = False
        if clean:
            for ball, path in zip(movers, paths, strict=True):
                record(ball, action, None, path, start, end)
            if action == "_pick_place":
                top.contains[end:] = [None] * (FRAMES - end)
            for ball in group[len(movers) :]:
                ball.moves.append(("_no_op", None, start, end))
            return splits
    for ball in group:
        ball.moves.append(("_no_op", None, start, end))
    return False


def draw_times(rng: random.Random, slot: int) -> tuple[int, int]:
    start = slot + rng.randint(0, 10)
    return start, min(start + rng.randint(20, 30), 300)


def line(a: Place, b: Place, count: int) -> list[Place]:
    points = []
    for i in range(count):
        share = i / (count - 1)
        points.append(tuple(p + share * (q - p) for p, q in zip(a, b, strict=True)))
    return points  # type: ignore[return-value]


def pick_place(ball: Ball, there: Place, start: int, end: int) -> list[Place]:
    count = end - start + 1
    up, over = int(0.2 * count), int(0.8 * count)
    here = ball.path[-1]
    high, high_there = (*here[:2], here[2] + 2), (*there[:2], here[2] + 2)
    rise, across = line(here, high, up + 1), line(high, high_there, over - up)
    return rise + across + line(high_there, (*there[:2], here[2]), end - start - over)


def is_free(ball: Ball, path: list[Place], others: list[Ball], start: int) -> bool:
    for frame in range(start, FRAMES):
        place = path[min(frame - start, len(path) - 1)]
        for other in others:
            if overlap(place, ball.size, other.path[frame], other.size):
                return False
    return True


def record(
    ball: Ball, action: str, other: Ball | None, path: list[Place], start: int, end: int
) -> None:
    ball.moves.append((action, other, start, end))
    ball.path[start : end + 1] = path
    ball.path[end:] = [path[-1]] * (FRAMES - end)


def check(groups: list[list[Ball]]) -> None:
    """Drop the scene if two outermost objects overlap without one containing the other."""
    tops = [group[0] for group in groups]
    for i, a in enumerate(tops):
        for b in tops[:i]:
            for frame in range(FRAMES):
                if overlap(a.path[frame], a.size, b.path[frame], b.size) and not (
                    a.holds(b, frame) or b.holds(a, frame)
                ):
                    raise Dropped


# --- What is measured ----------------------------------------------------------------------------


def measure(scene: dict[str, Any]) -> dict[str, float]:
    """Return the quantities of a scene to compare."""
    moves = [move for of_object in scene["movements"].values() for move in of_object]
    hidden = [cater_frames.snitch_hidden(scene, frame) for frame in range(FRAMES)]
    changes = [after - before for before, after in pairwise(hidden)]
    end = hidden_end(scene)
    actions = cater_labels.actions_present(scene)
    return {
        "objects": len(scene["objects"]),
        "movements, without no-ops": sum(action != "_no_op" for action, *_ in moves),
        "no-ops": sum(action == "_no_op" for action, *_ in moves),
        "snitch covered (times)": changes.count(1),
        "snitch uncovered (times)": changes.count(-1),
        "hidden part of the video": sum(hidden) / FRAMES,
        "hidden at the end": end is not None,
        "hidden at the end, in nested cones": end is not None and end.cones > 1,
        "hidden at the end, carried": end is not None and end.carried,
        **{
            f"{shape} {action.strip('_').replace('_', ' ')}": i in actions
            for i, (shape, action) in enumerate(cater_labels.ACTION_CLASSES)
        },
    }
