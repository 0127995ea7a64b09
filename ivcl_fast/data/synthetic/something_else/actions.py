"""Templates of the synthetic Something-Else, and the acts of hands and things that show them.

A clip has a few *layers*, things and hands, each with a position at every moment. Lengths are in
frame heights; x points right and y points down from the upper left corner; time runs from 0 to 1.
Opposite templates (up and down, covering and uncovering) are the same act played forwards and
backwards, and left and right are mirror images. So no single frame distinguishes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from ivcl_fast.data.synthetic.cater.world import ease

ASPECT = 427 / 240
"""Width of the frame, in frame heights."""
SMALL_SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SHAPES = (*SMALL_SHAPES, "cloth", "box")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
PATTERNS = ("banded", "capped", "halved")

_LARGE = 0.19  # half the size of a cloth or a box; other things are at most 0.15
_MARGIN = 0.35  # least distance from the left and right border of a thing with a hand beside it


class Noun(NamedTuple):
    """Name and look of a thing."""

    pattern: str
    color: str
    shape: str

    def __str__(self) -> str:
        return " ".join(self)


@dataclass(frozen=True)
class Grip:
    """Pose of a hand, as unit vectors."""

    towards: tuple[float, float]
    """From the hand to the thing it holds."""
    arm: tuple[float, float]
    """From the hand to the elbow."""


@dataclass(frozen=True)
class Layer:
    """A thing or a hand over time; later layers are in front."""

    look: Noun | Grip
    size: float
    """Half the height of a thing; unused for a hand."""
    x: np.ndarray
    """float64 ``[F]``: the centre of a thing, or the finger tips of a hand."""
    y: np.ndarray
    angle: np.ndarray
    """float64 ``[F]``, radians, clockwise."""
    number: int | None = None
    """Index of a thing's noun in the clip; None for hands."""


@dataclass(frozen=True)
class Template:
    """A Something-Something template and the act that shows it."""

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
    """Makes the layers of a clip, from its times, the nouns of its things and random choices."""

    def __init__(self, nouns: Sequence[Noun], frames: int, rng: np.random.Generator) -> None:
        self.nouns = nouns
        self.time = np.linspace(0.0, 1.0, frames)
        self.rng = rng
        self.begin = self.uniform(0.12, 0.22)
        """Time at which the hand has arrived."""
        self.end = self.uniform(0.78, 0.88)
        """Time at which the hand leaves."""

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def side(self) -> int:
        """Draw -1 (left) or 1 (right)."""
        return int(self.rng.choice((-1, 1)))

    def ease(self, start: float, end: float) -> np.ndarray:
        """Move smoothly from 0 to 1 between two times; float64 ``[F]``."""
        return ease((self.time - start) / (end - start))

    def thing(
        self,
        number: int,
        x: np.ndarray | float,
        y: np.ndarray | float,
        size: float | None = None,
        angle: np.ndarray | float = 0.0,
    ) -> Layer:
        """Make the thing with noun ``number``; accepts numbers and arrays ``[F]``."""
        size = self.uniform(0.12, 0.15) if size is None else size
        x, y, angle = (self._track(v) for v in (x, y, angle))
        return Layer(self.nouns[number], size, x, y, angle, number)

    def hand_beside(self, thing: Layer, side: int, leaves: float | None) -> Layer:
        """Make a hand that comes to the left (-1) or right (1) of a thing, stays, and leaves."""
        slant = self.uniform(0.2, 1.0)
        grip = Grip((-side, 0.0), (side * math.cos(slant), math.sin(slant)))
        return self._hand(grip, thing.x + side * 0.8 * thing.size, thing.y, leaves)

    def hand_above(self, x: np.ndarray, y: np.ndarray, side: int, leaves: float | None) -> Layer:
        """Make a hand that comes to a point from above, follows it, and leaves."""
        slant = self.uniform(0.75, 1.25)
        grip = Grip((0.0, 1.0), (side * math.cos(slant), -math.sin(slant)))
        return self._hand(grip, x, y, leaves)

    def _hand(self, grip: Grip, x: np.ndarray, y: np.ndarray, leaves: float | None) -> Layer:
        away = 1.0 - self.ease(0.0, self.begin)
        if leaves is not None:
            away = away + self.ease(leaves, 1.0)
        ax, ay = grip.arm
        # Distance along the arm after which no finger is left in the frame.
        to_side = ((ASPECT - x) if ax > 0 else x) / max(abs(ax), 1e-6)
        to_edge = ((1.0 - y) if ay > 0 else y) / max(abs(ay), 1e-6)
        way = away * (np.minimum(to_side, to_edge) + 0.25)
        return Layer(grip, 0.0, x + ax * way, y + ay * way, self._track(0.0))

    def _track(self, value: np.ndarray | float) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), self.time.shape)


def _lift(s: Scene) -> list[Layer]:
    low = s.uniform(0.62, 0.78)
    y = low - s.uniform(0.3, 0.42) * s.ease(s.begin, s.end)
    thing = s.thing(0, s.uniform(_MARGIN, ASPECT - _MARGIN), y)
    return [thing, s.hand_beside(thing, s.side(), None)]


def _turn(s: Scene, pretending: bool = False) -> list[Layer]:
    middle = (s.begin + s.end) / 2
    if pretending:
        angle = 1.2 * (s.ease(s.begin, middle) - s.ease(middle, s.end))
    else:
        angle = math.pi * s.ease(s.begin, s.end)
    y = s.uniform(0.6, 0.75) - 0.12 * (s.ease(s.begin, middle) - s.ease(middle, s.end))
    thing = s.thing(0, s.uniform(_MARGIN, ASPECT - _MARGIN), y, angle=s.side() * angle)
    return [thing, s.hand_beside(thing, s.side(), s.end)]


def _push(s: Scene) -> list[Layer]:
    """Push a thing from left to right."""
    start, way = s.uniform(_MARGIN, 0.6), s.uniform(0.6, 0.9)
    thing = s.thing(0, start + way * s.ease(s.begin, s.end), s.uniform(0.6, 0.78))
    return [thing, s.hand_beside(thing, -1, s.end)]


def _facing(s: Scene, gap: np.ndarray, offset: float = 0.0) -> list[Layer]:
    """Place two things ``gap`` apart, with a hand at the outer side of each."""
    center, y = s.uniform(0.8, ASPECT - 0.8), s.uniform(0.6, 0.72)
    first = int(s.rng.integers(2))
    left = s.thing(first, center - gap / 2, y - offset)
    right = s.thing(1 - first, center + gap / 2, y + offset)
    hands = s.hand_beside(left, -1, s.end), s.hand_beside(right, 1, s.end)
    return [left, hands[0], right, hands[1]]


def _approach(s: Scene) -> list[Layer]:
    far, near = s.uniform(0.85, 1.05), s.uniform(0.36, 0.44)
    return _facing(s, far + (near - far) * s.ease(s.begin, s.end))


def _collide(s: Scene) -> list[Layer]:
    far, touch, recoil = s.uniform(0.85, 1.05), 0.23, s.uniform(0.3, 0.4)
    hit = s.uniform(0.5, 0.6)
    u = np.clip((s.time - s.begin) / (hit - s.begin), 0.0, 1.0)
    v = np.clip((s.time - hit) / (s.end - hit), 0.0, 1.0)
    return _facing(s, far + (touch - far) * u * u + recoil * v * (2.0 - v))


def _pass(s: Scene) -> list[Layer]:
    far = s.uniform(0.85, 1.05)
    return _facing(s, far * (1.0 - 2.0 * s.ease(s.begin, s.end)), s.side() * 0.09)


def _cover(s: Scene) -> list[Layer]:
    side = s.side()
    x, y = s.uniform(0.65, ASPECT - 0.65), s.uniform(0.64, 0.74)
    progress = s.ease(s.begin, s.end)
    cover_x = x + side * s.uniform(0.42, 0.5) * (1.0 - progress)
    cover_y = y - 0.3 * 4.0 * progress * (1.0 - progress)
    cover = s.thing(1, cover_x, cover_y, _LARGE)
    hand = s.hand_above(cover.x, cover.y - 0.8 * _LARGE, side, s.end)
    return [s.thing(0, x, y), cover, hand]


def _carry(s: Scene, end: str) -> list[Layer]:
    """Carry a thing over a box: it ends ``in`` the box, ``on`` it, or is ``dropped`` onto it."""
    side = s.side()
    x, y = s.uniform(0.65, ASPECT - 0.65), s.uniform(0.74, 0.8)
    box = s.thing(1, x, y, _LARGE)
    size = s.uniform(0.11, 0.13)
    rim = y - 0.8 * _LARGE
    high, resting = rim - s.uniform(0.36, 0.42), rim - 0.8 * size
    lying = y + 0.8 * _LARGE - 0.9 * size
    lifted, over = s.begin + 0.2, s.begin + 0.36
    thing_x = x + side * s.uniform(0.42, 0.55) * (1.0 - s.ease(lifted - 0.06, over))
    carried_y = lying + (high - lying) * s.ease(s.begin, lifted)
    target = y if end == "in" else resting
    if end == "dropped":
        fall = np.clip((s.time - over) / 0.16, 0.0, 1.0)
        thing_y = carried_y + (target - high) * fall * fall
        hand_y, leaves = carried_y, over + 0.2
    else:
        thing_y = carried_y + (target - high) * s.ease(over, s.end)
        hand_y, leaves = thing_y, s.end
    thing = s.thing(0, thing_x, thing_y, size)
    hand = s.hand_above(thing.x, hand_y - 0.8 * size, side, leaves)
    return [thing, hand, box] if end == "in" else [box, thing, hand]


_insert, _put_onto, _drop_onto = (partial(_carry, end=end) for end in ("in", "on", "dropped"))

_T = Template
TEMPLATES: tuple[Template, ...] = (
    _T("Moving [something] up", 0, _lift),
    _T("Moving [something] down", 0, _lift, backwards=True),
    _T("Moving [something] and [something] closer to each other", 0, _approach, "small"),
    _T(
        "Moving [something] and [something] away from each other",
        0,
        _approach,
        "small",
        backwards=True,
    ),
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
    _T("Putting [something] onto [something]", 1, _put_onto, "box"),
    _T("Dropping [something] onto [something]", 1, _drop_onto, "box"),
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
    """Draw nouns of a set for the things of a template, by the number of the layer."""
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
        layers = [_mirrored(layer) for layer in layers]
    if template.backwards:
        layers = [
            replace(layer, x=layer.x[::-1], y=layer.y[::-1], angle=layer.angle[::-1])
            for layer in layers
        ]
    return layers


def _mirrored(layer: Layer) -> Layer:
    look = layer.look
    if isinstance(look, Grip):
        look = Grip((-look.towards[0], look.towards[1]), (-look.arm[0], look.arm[1]))
    return replace(layer, look=look, x=ASPECT - layer.x, angle=-layer.angle)
