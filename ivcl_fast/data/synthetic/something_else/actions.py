"""Templates of the synthetic Something-Else, and the actions of hands and things that show them.

A clip has a few *layers*, things and hands, each with a position in every frame. Lengths are in
frame heights; x points right and y points down from the upper left corner; time runs from 0 to 1.
Opposite templates (up and down, covering and uncovering) are the same action played forwards and
backwards, and left and right are mirror images. So no single frame distinguishes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

ASPECT = 427 / 240
"""Width of the frame, in frame heights."""
SMALL_SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SHAPES = (*SMALL_SHAPES, "cloth", "box")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
PATTERNS = ("banded", "capped", "halved")
LARGE = 0.19
"""Half the size of a cloth or a box; other things are at most 0.15."""


class Noun(NamedTuple):
    """Name and look of a thing."""

    pattern: str
    color: str
    shape: str

    def __str__(self) -> str:
        return " ".join(self)


@dataclass(frozen=True)
class Layer:
    """A thing or a hand over time; later layers are in front."""

    x: np.ndarray
    """float64 ``[F]``: the centre of a thing, or the finger tips of a hand."""
    y: np.ndarray
    angle: np.ndarray
    """float64 ``[F]``, radians, clockwise; unused for a hand."""
    noun: Noun | None = None
    """None for a hand."""
    number: int | None = None
    """Index of a thing's noun in the clip; None for a hand."""
    size: float = 0.0
    """Half the height of a thing."""
    arm: tuple[float, float] = (0.0, 0.0)
    """Unit vector from the finger tips of a hand to its elbow."""


@dataclass(frozen=True)
class Template:
    """A Something-Something template and the action that shows it."""

    text: str
    """The text in the data set, with ``[something]``."""
    group: int
    """0 or 1; opposites are in the same group."""
    act: Callable[[Scene], list[Layer]]
    second: Literal["small", "cloth", "box"] | None = None
    """Kind of the second thing."""
    backwards: bool = False
    mirrored: bool = False

    @property
    def key(self) -> str:
        """Name of the class: the text without brackets."""
        return self.text.replace("[", "").replace("]", "")

    @property
    def placeholders(self) -> int:
        """Number of things that the text names; they come first."""
        return self.text.count("[something]")


class Scene:
    """Makes the layers of a clip from its times, the nouns of its things and random choices."""

    def __init__(self, nouns: Sequence[Noun], frames: int, rng: np.random.Generator) -> None:
        self.nouns, self.rng = nouns, rng
        self.time = np.linspace(0.0, 1.0, frames)
        self.begin, self.end = self.uniform(0.12, 0.22), self.uniform(0.78, 0.88)
        """Times at which the hands have arrived, and at which they leave."""
        self.progress = self.ease(self.begin, self.end)
        """float64 ``[F]``: from 0 to 1 while the hands are there."""

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def side(self) -> int:
        """Choose -1 (left) or 1 (right)."""
        return int(self.rng.choice((-1, 1)))

    def ease(self, start: float, end: float) -> np.ndarray:
        """Return a smooth step from 0 to 1 between two times: float64 ``[F]``."""
        u = np.clip((self.time - start) / (end - start), 0.0, 1.0)
        return u * u * (3.0 - 2.0 * u)

    def thing(
        self, number: int, x: ArrayLike, y: ArrayLike, size: float = 0.0, angle: ArrayLike = 0.0
    ) -> Layer:
        """Make the thing with noun ``number``; positions and angle are numbers or ``[F]``."""
        size = size or self.uniform(0.12, 0.15)
        x, y, angle = (
            np.broadcast_to(np.asarray(v, np.float64), self.time.shape) for v in (x, y, angle)
        )
        return Layer(x, y, angle, self.nouns[number], number, size)

    def hand(self, thing: Layer, side: int, leaves: float | None, above: bool = False) -> Layer:
        """Make a hand that comes to a thing, follows it, and leaves at a time or never.

        It is to the left (-1) or right (1) of the thing, or at its top.
        """
        slant = self.uniform(0.75, 1.25) if above else self.uniform(0.1, 0.6)
        ax, ay = side * math.cos(slant), math.sin(slant) * (-1 if above else 1)
        reach = 0.8 * thing.size
        x, y = (thing.x, thing.y - reach) if above else (thing.x + side * reach, thing.y)
        away = 1.0 - self.ease(0.0, self.begin)
        if leaves is not None:
            away = away + self.ease(leaves, 1.0)
        # Distance along the arm after which no finger is left in the frame.
        to_side, to_edge = (
            (ASPECT - x if ax > 0 else x) / abs(ax),
            (1 - y if ay > 0 else y) / abs(ay),
        )
        way = away * (np.minimum(to_side, to_edge) + 0.25)
        return Layer(x + ax * way, y + ay * way, thing.angle, arm=(ax, ay))


def _lift(s: Scene) -> list[Layer]:
    y = s.uniform(0.62, 0.78) - s.uniform(0.3, 0.42) * s.progress
    thing = s.thing(0, s.uniform(0.35, ASPECT - 0.35), y)
    return [thing, s.hand(thing, s.side(), None)]


def _turn(s: Scene, pretending: bool = False) -> list[Layer]:
    middle = (s.begin + s.end) / 2
    bump = s.ease(s.begin, middle) - s.ease(middle, s.end)
    angle = s.side() * (1.2 * bump if pretending else math.pi * s.progress)
    y = s.uniform(0.6, 0.75) - 0.12 * bump
    thing = s.thing(0, s.uniform(0.35, ASPECT - 0.35), y, angle=angle)
    return [thing, s.hand(thing, s.side(), s.end)]


def _push(s: Scene) -> list[Layer]:
    """Push a thing from left to right."""
    x = s.uniform(0.35, 0.6) + s.uniform(0.6, 0.9) * s.progress
    thing = s.thing(0, x, s.uniform(0.6, 0.78))
    return [thing, s.hand(thing, -1, s.end)]


def _facing(s: Scene, gap: np.ndarray, offset: float = 0.0) -> list[Layer]:
    """Place two things ``gap`` apart, with a hand at the outer side of each."""
    center, y = s.uniform(0.8, ASPECT - 0.8), s.uniform(0.6, 0.72)
    first = int(s.rng.integers(2))
    left = s.thing(first, center - gap / 2, y - offset)
    right = s.thing(1 - first, center + gap / 2, y + offset)
    return [left, s.hand(left, -1, s.end), right, s.hand(right, 1, s.end)]


def _approach(s: Scene) -> list[Layer]:
    far, near = s.uniform(0.85, 1.05), s.uniform(0.36, 0.44)
    return _facing(s, far + (near - far) * s.progress)


def _collide(s: Scene) -> list[Layer]:
    far, touch, hit = s.uniform(0.85, 1.05), 0.23, s.uniform(0.5, 0.6)
    recoil = s.uniform(0.3, 0.4) * s.ease(hit, s.end)
    return _facing(s, far + (touch - far) * s.ease(s.begin, hit) + recoil)


def _pass(s: Scene) -> list[Layer]:
    return _facing(s, s.uniform(0.85, 1.05) * (1.0 - 2.0 * s.progress), s.side() * 0.09)


def _cover(s: Scene) -> list[Layer]:
    side, x, y = s.side(), s.uniform(0.65, ASPECT - 0.65), s.uniform(0.64, 0.74)
    cover_x = x + side * s.uniform(0.42, 0.5) * (1.0 - s.progress)
    cover = s.thing(1, cover_x, y - 1.2 * s.progress * (1.0 - s.progress), LARGE)
    return [s.thing(0, x, y), cover, s.hand(cover, side, s.end, above=True)]


def _carry(s: Scene, end: str) -> list[Layer]:
    """Carry a thing over a box: it ends ``in`` the box, ``on`` it, or is ``dropped`` onto it."""
    side, x, y = s.side(), s.uniform(0.65, ASPECT - 0.65), s.uniform(0.74, 0.8)
    box, size = s.thing(1, x, y, LARGE), s.uniform(0.11, 0.13)
    rim, lifted, over = y - 0.8 * LARGE, s.begin + 0.2, s.begin + 0.36
    lying, high = y + 0.8 * LARGE - 0.9 * size, rim - s.uniform(0.36, 0.42)
    target = y if end == "in" else rim - 0.8 * size
    down = np.clip((s.time - over) / 0.16, 0.0, 1.0) ** 2  # it falls
    if end != "dropped":
        down = s.ease(over, s.end)
    thing_x = x + side * s.uniform(0.42, 0.55) * (1.0 - s.ease(lifted - 0.06, over))
    carried_y = lying + (high - lying) * s.ease(s.begin, lifted)
    thing = s.thing(0, thing_x, carried_y + (target - high) * down, size)
    held = replace(thing, y=carried_y) if end == "dropped" else thing
    hand = s.hand(held, side, over + 0.2 if end == "dropped" else s.end, above=True)
    return [thing, hand, box] if end == "in" else [box, thing, hand]


_insert = partial(_carry, end="in")
_T = Template
TEMPLATES: tuple[Template, ...] = (
    _T("Moving [something] up", 0, _lift),
    _T("Moving [something] down", 0, _lift, backwards=True),
    _T("Moving [something] and [something] closer to each other", 0, _approach, "small"),
    _T("Moving [something] and [something] away from each other", 0, _approach, "small", True),
    _T("Covering [something] with [something]", 0, _cover, "cloth"),
    _T("Uncovering [something]", 0, _cover, "cloth", backwards=True),
    _T("Turning [something] upside down", 0, _turn),
    _T("Pretending to turn [something] upside down", 0, partial(_turn, pretending=True)),
    _T("Pushing [something] from left to right", 1, _push),
    _T("Pushing [something] from right to left", 1, _push, mirrored=True),
    _T("Pulling [something] from right to left", 1, _push, backwards=True),
    _T("Pulling [something] from left to right", 1, _push, backwards=True, mirrored=True),
    _T("Moving [something] and [something] so they collide with each other", 1, _collide, "small"),
    _T("Moving [something] and [something] so they pass each other", 1, _pass, "small"),
    _T("Putting [something] into [something]", 1, _insert, "box"),
    _T("Taking [something] out of [something]", 1, _insert, "box", backwards=True),
    _T("Putting [something] onto [something]", 1, partial(_carry, end="on"), "box"),
    _T("Dropping [something] onto [something]", 1, partial(_carry, end="dropped"), "box"),
)
"""In the order of the classes, which is not alphabetical, as in the data set."""


def nouns_of_set(which: int, shapes: Sequence[str] = SHAPES) -> list[Noun]:
    """List the nouns with these shapes in noun set 0 (A) or 1 (B).

    Each set has half of the combinations, and every shape, color and pattern: only the combination
    determines the set.
    """
    return [
        Noun(pattern, color, shape)
        for s, shape in enumerate(SHAPES)
        for c, color in enumerate(COLORS)
        for p, pattern in enumerate(PATTERNS)
        if shape in shapes and (s + c + p) % 2 == which
    ]


def choose_nouns(template: Template, which: int, rng: np.random.Generator) -> list[Noun]:
    """Choose nouns of a set for the things of a template, by the number of the layer."""
    small = nouns_of_set(which, SMALL_SHAPES)
    chosen = [small.pop(rng.integers(len(small)))]
    if template.second == "small":
        chosen.append(small[rng.integers(len(small))])
    elif template.second:
        large = nouns_of_set(which, (template.second,))
        chosen.append(large[rng.integers(len(large))])
    return chosen


def play(
    template: Template, nouns: Sequence[Noun], frames: int, rng: np.random.Generator
) -> list[Layer]:
    """Make the layers of a clip of ``frames`` frames, from back to front."""
    layers = template.act(Scene(nouns, frames, rng))
    if template.mirrored:
        layers = [
            replace(
                layer, x=ASPECT - layer.x, angle=-layer.angle, arm=(-layer.arm[0], layer.arm[1])
            )
            for layer in layers
        ]
    if template.backwards:
        layers = [replace(m, x=m.x[::-1], y=m.y[::-1], angle=m.angle[::-1]) for m in layers]
    return layers
