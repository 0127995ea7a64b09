"""Templates of the synthetic Something-Else, and the actions of hands and things that show them.

A clip has a few *layers*, things and hands, each with a position in every frame. Lengths are in
frame heights; x points right and y points down from the upper left corner; time runs from 0 to 1.
Opposite templates are the same action played forwards and backwards, and left and right are mirror
images. So a single frame distinguishes them only if its time is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

ASPECT = 427 / 240
"""Width of the frame, in frame heights."""
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")


class Noun(NamedTuple):
    """Name and look of a thing."""

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
    noun: Noun | None = None
    """None for a hand."""
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
    backwards: bool = False
    mirrored: bool = False

    @property
    def key(self) -> str:
        """Name of the class: the text without brackets."""
        return self.text.replace("[", "").replace("]", "")

    @property
    def placeholders(self) -> int:
        """Number of things."""
        return self.text.count("[something]")


class Scene:
    """Makes the layers of a clip from its times, the nouns of its things and random choices."""

    def __init__(self, nouns: list[Noun], frames: int, rng: np.random.Generator) -> None:
        self.nouns, self.rng = nouns, rng
        self.time = np.linspace(0.0, 1.0, frames)
        self.begin, self.end = self.uniform(0.12, 0.22), self.uniform(0.78, 0.88)
        """Times at which the hands have arrived, and at which they leave."""
        self.progress = self.ease(self.begin, self.end)
        """float64 ``[F]``: from 0 to 1 while the hands are there."""

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def ease(self, start: float, end: float) -> np.ndarray:
        """Return a smooth step from 0 to 1 between two times: float64 ``[F]``."""
        u = np.clip((self.time - start) / (end - start), 0.0, 1.0)
        return u * u * (3.0 - 2.0 * u)

    def thing(self, number: int, x: np.ndarray | float, y: np.ndarray | float) -> Layer:
        """Make the thing with noun ``number``; positions are numbers or ``[F]``."""
        x, y = (np.broadcast_to(np.float64(v), self.time.shape) for v in (x, y))
        return Layer(x, y, self.nouns[number], self.uniform(0.12, 0.15))

    def hand(self, thing: Layer, side: int) -> Layer:
        """Make a hand that comes to the left (-1) or right (1) of a thing, follows it, and leaves.

        It comes and goes along its arm, by a length after which no finger is left in the frame.
        """
        slant = self.uniform(0.1, 0.6)
        arm = side * math.cos(slant), math.sin(slant)
        x, y = thing.x + side * 0.8 * thing.size, thing.y
        to_side = (ASPECT - x if side > 0 else x) / abs(arm[0])
        away = 1.0 - self.ease(0.0, self.begin) + self.ease(self.end, 1.0)
        way = away * (np.minimum(to_side, (1.0 - y) / arm[1]) + 0.25)
        return Layer(x + arm[0] * way, y + arm[1] * way, arm=arm)


def _lift(s: Scene) -> list[Layer]:
    y = s.uniform(0.62, 0.78) - s.uniform(0.3, 0.42) * s.progress
    thing = s.thing(0, s.uniform(0.35, ASPECT - 0.35), y)
    return [thing, s.hand(thing, int(s.rng.choice((-1, 1))))]


def _push(s: Scene) -> list[Layer]:
    """Push a thing from left to right."""
    x = s.uniform(0.35, 0.6) + s.uniform(0.6, 0.9) * s.progress
    thing = s.thing(0, x, s.uniform(0.6, 0.78))
    return [thing, s.hand(thing, -1)]


def _approach(s: Scene) -> list[Layer]:
    """Move two things towards each other, with a hand at the outer side of each."""
    far, near = s.uniform(0.85, 1.05), s.uniform(0.36, 0.44)
    gap, center = far + (near - far) * s.progress, s.uniform(0.8, ASPECT - 0.8)
    y, first = s.uniform(0.6, 0.72), int(s.rng.integers(2))
    left, right = s.thing(first, center - gap / 2, y), s.thing(1 - first, center + gap / 2, y)
    return [left, s.hand(left, -1), right, s.hand(right, 1)]


TEMPLATES: tuple[Template, ...] = (
    Template("Moving [something] up", 0, _lift),
    Template("Moving [something] down", 0, _lift, backwards=True),
    Template("Moving [something] and [something] closer to each other", 0, _approach),
    Template("Moving [something] and [something] away from each other", 0, _approach, True),
    Template("Pushing [something] from left to right", 1, _push),
    Template("Pushing [something] from right to left", 1, _push, mirrored=True),
    Template("Pulling [something] from right to left", 1, _push, backwards=True),
    Template("Pulling [something] from left to right", 1, _push, backwards=True, mirrored=True),
)
"""In the order of the classes, which is not alphabetical, as in the data set."""


def nouns_of_set(which: int) -> list[Noun]:
    """List the nouns in noun set 0 (A) or 1 (B).

    Each set has half of the combinations, and every shape and color: only the combination
    determines the set.
    """
    return [
        Noun(color, shape)
        for s, shape in enumerate(SHAPES)
        for c, color in enumerate(COLORS)
        if (s + c) % 2 == which
    ]


def choose_nouns(template: Template, which: int, rng: np.random.Generator) -> list[Noun]:
    """Choose different nouns of a set for the things of a template."""
    nouns = nouns_of_set(which)
    return [nouns[i] for i in rng.permutation(len(nouns))[: template.placeholders]]


def play(
    template: Template, nouns: list[Noun], frames: int, rng: np.random.Generator
) -> list[Layer]:
    """Make the layers of a clip of ``frames`` frames, from back to front."""
    layers = template.act(Scene(nouns, frames, rng))
    if template.mirrored:
        layers = [
            replace(layer, x=ASPECT - layer.x, arm=(-layer.arm[0], layer.arm[1]))
            for layer in layers
        ]
    if template.backwards:
        layers = [replace(layer, x=layer.x[::-1], y=layer.y[::-1]) for layer in layers]
    return layers
