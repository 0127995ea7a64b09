"""The ACRE data set: problems of ten panels, of which six are context and four are queries.

Source: github.com/WellyZhang/ACRE, ``src/dataset`` and ``src/baseline``. A regime is a folder, such
as ``ACRE_IID``::

    config/<split>.json                          a list of problems, each a list of 10 panels
    images/ACRE_<split>_<problem>_<panel>.png    320 x 240, with an alpha channel, which is dropped
    scenes/ACRE_<split>_<problem>_<panel>.json   positions of the objects; not read here

with split ``train``, ``val`` or ``test``, problem ``%06d`` and panel ``%02d``. Panels 0 to 5 show
objects and a machine that is on or off. Panels 6 to 9 show no machine and ask for its state: for
single objects (6, 7), or for an off panel with objects added (8, 9). Results are reported
on ``test``; ``val`` is for choosing settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_json

Regime = Literal["iid", "comp", "sys"]
QuestionType = Literal["direct", "indirect", "screen_off", "potential"]
"""Types of questions; ``potential`` is called *backward-blocked* in the paper."""
Light = Literal["on", "off", "no"]
"""State of the machine; query panels have ``no`` machine."""

SPLITS = ("train", "test", "val")
TYPES: tuple[QuestionType, ...] = get_args(QuestionType)
OFF, UNDETERMINED, ON = range(3)
"""Labels of the clips."""
CONTEXT = range(6)
PANELS = range(10)
QUERIES = range(6, 10)

_ANSWERS = ("the machine is off", "undetermined", "the machine is on")


class Attributes(NamedTuple):
    """The appearance of an object."""

    shape: str
    color: str
    material: str


class Panel(NamedTuple):
    """A panel; context panels have no label and no type."""

    objects: tuple[int, ...]
    """Object ids: indices into :func:`object_table`."""
    light: Light
    label: int | None = None
    type: QuestionType | None = None
    ref: int | None = None
    """The context panel to which an interventional query (8, 9) adds objects."""


Problem = tuple[Panel, ...]
"""Ten panels."""


@dataclass(frozen=True)
class Query:
    """The question of a clip."""

    problem: int
    """Number of the problem in the split; four clips share it."""
    panel: int
    """The query panel, 6 to 9."""
    type: QuestionType


# --- Objects -------------------------------------------------------------------------------------

COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
MATERIALS = ("rubber", "metal")
_PALETTE_A = ("gray", "blue", "brown", "yellow")
_PALETTE_B = ("red", "green", "purple", "cyan")


def _table(
    cube: tuple[str, ...], cylinder: tuple[str, ...], sphere: tuple[str, ...]
) -> tuple[Attributes, ...]:
    """List the objects with these colours of cubes and cylinders and materials of spheres."""
    return (
        *(Attributes("cube", *look) for look in product(cube, MATERIALS)),
        *(Attributes("cylinder", *look) for look in product(cylinder, MATERIALS)),
        *(Attributes("sphere", *look) for look in product(COLORS, sphere)),
    )


_ALL = _table(COLORS, COLORS, MATERIALS)
_COMP_TRAIN = _table(_PALETTE_A, _PALETTE_B, ("rubber",))
_COMP_TEST = _table(_PALETTE_B, _PALETTE_A, ("metal",))


def object_table(regime: Regime, split: str) -> tuple[Attributes, ...]:
    """Return the attributes of each object id: 48 objects, or 24 in ``comp``.

    In ``comp``, ids stand for different objects in ``train`` than in ``val`` and ``test``. ACRE's
    files do not state this: object 0 is a gray rubber cube in ``train`` and a red one elsewhere.
    """
    if regime != "comp":
        return _ALL
    return _COMP_TRAIN if split == "train" else _COMP_TEST


# --- The data set --------------------------------------------------------------------------------


class Acre:
    """One regime of ACRE; implements :class:`~ivcl_fast.data.dataset.Dataset`.

    A clip has seven frames: the six context panels of a problem and one of its queries.

    Example::

        >>> dataset = Acre(Path("ACRE_IID"))
        >>> clip = dataset.clips("test")[0]
        >>> dataset.describe(clip.label)
    """

    splits = SPLITS
    curve_split = "val"
    num_classes = len(_ANSWERS)
    multi_label = False

    def __init__(self, root: Path, task: str = "acre") -> None:
        """Raise :class:`UserError` for a folder that is not a regime."""
        self.root, self.task = Path(root), task
        for folder in ("config", "images"):
            if not (self.root / folder).is_dir():
                raise UserError(
                    f"{self.root}: expected a regime of ACRE, such as ACRE_IID, with config/ and "
                    f"images/, got no {folder}/"
                )

    def clips(self, split: str) -> list[Clip]:
        """Return four clips per problem, in the order of the file; does not open the pictures.

        Raises :class:`UserError` for a missing or malformed file.
        """
        return [
            Clip(_clip_name(split, number, q), media_name(split, number), label, (*CONTEXT, q))
            for number, problem in enumerate(self.problems(split))
            for q in QUERIES
            if (label := problem[q].label) is not None
        ]

    def media(self) -> list[Media]:
        """Return the ten panels of each problem of all splits; they need not exist."""
        present = [split for split in SPLITS if self._config(split).is_file()]
        if not present:
            raise UserError(f"{self.root / 'config'}: expected train.json, val.json or test.json")
        names = sorted(
            media_name(split, n) for split in present for n in range(len(self.problems(split)))
        )
        images = self.root / "images"
        return [
            Media(name, tuple(images / f"{name}_{i:02d}.png" for i in PANELS)) for name in names
        ]

    def describe(self, label: int) -> str:
        """Describe a class in words."""
        return _ANSWERS[label]

    def queries(self, split: str) -> dict[str, Query]:
        """Return the problem, panel and question type of each clip of a split, by its name."""
        return {
            _clip_name(split, number, q): Query(number, q, kind)
            for number, problem in enumerate(self.problems(split))
            for q in QUERIES
            if (kind := problem[q].type) is not None
        }

    def problems(self, split: str) -> list[Problem]:
        """Return the problems of a split; raises :class:`UserError` like :meth:`clips`."""
        path = self._config(split)
        problems = read_json(path, "config/<split>.json of a regime of ACRE")
        try:
            return [_problem(panels) for panels in problems]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: expected problems of ten panels, got {type(error).__name__}: {error}"
            ) from None

    def _config(self, split: str) -> Path:
        return self.root / "config" / f"{split}.json"


def covariation(problem: Problem) -> list[int]:
    """Answer the queries by counting how often the machine was on in trials with each object.

    The object with the highest share decides each query: on from 60 %, off below 40 %, otherwise
    undetermined. ACRE's baseline of this kind (``NS-RW``) has the same thresholds.
    """
    answers = []
    for i in QUERIES:
        shares = []
        for o in problem[i].objects:
            seen = [problem[c].light == "on" for c in CONTEXT if o in problem[c].objects]
            shares.append(sum(seen) / len(seen) if seen else 0.5)
        strongest = max(shares)
        answers.append(ON if strongest >= 0.6 else UNDETERMINED if strongest >= 0.4 else OFF)
    return answers


def media_name(split: str, number: int) -> str:
    """Return the prefix of the file names of a problem."""
    return f"ACRE_{split}_{number:06d}"


def _clip_name(split: str, number: int, query: int) -> str:
    return f"{media_name(split, number)}_{query:02d}"


def _problem(panels: list[dict[str, Any]]) -> Problem:
    if len(panels) != len(PANELS):
        raise ValueError(f"{len(panels)} panels")
    problem = []
    for number, panel in enumerate(panels):
        answer = () if number in CONTEXT else (panel["label"], panel["type"], panel.get("ref"))
        problem.append(Panel(tuple(panel["objects"]), panel["light_state"], *answer))
    return tuple(problem)
