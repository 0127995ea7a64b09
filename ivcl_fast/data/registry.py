"""The data sets by name: how each is opened, and how synthetic ones are written.

A name is ``KIND:DIR`` for a folder in the true format, ``synthetic...`` for one of our own making.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ivcl_fast.data.dataset import Dataset
from ivcl_fast.errors import UserError

ACCEPTED_FOLDERS = "cater:DIR, acre:DIR or something-else:DIR"
ACCEPTED_SYNTHETIC = (
    "synthetic, synthetic:static, synthetic:moving, synthetic:acre-iid, synthetic:acre-comp, "
    "synthetic:acre-sys or synthetic:something-else"
)
ACCEPTED = f"{ACCEPTED_SYNTHETIC}, {ACCEPTED_FOLDERS}"


@dataclass(frozen=True)
class Kind:
    """A data set's format."""

    tasks: Callable[[], Sequence[str]]
    """Names of its tasks, the usual one first."""
    open: Callable[[Path, str], Dataset]
    media_by_task: bool = False
    """Whether every task has media of its own, so that its store is its own too."""
    frames: int | None = None
    """Of every clip, where the data set says so: a model takes no other number."""
    random_crop: bool = False
    """Whether a part of the frame may stand for the whole: the answer is no place in it."""
    frame_labels: bool = False
    """Whether it tells what single frames show, for supervised pretraining."""


@dataclass(frozen=True)
class Synthetic:
    """A data set that is written when it is asked for."""

    kind: str
    spec: Callable[..., Any]
    """Takes train and val (numbers of items to train and to measure on), size and seed."""
    write: Callable[..., Path]
    """Takes folder, spec, workers and progress."""
    items: str
    """What is counted, in the plural."""


def _cater() -> Kind:
    from ivcl_fast.data.formats.cater import TASKS, Cater

    return Kind(lambda: list(TASKS), Cater, frame_labels=True)


def _acre() -> Kind:
    from ivcl_fast.data.formats.acre import CONTEXT, Acre

    return Kind(lambda: ["acre"], Acre, frames=len(CONTEXT) + 1)


def _something_else() -> Kind:
    from ivcl_fast.data.formats.something_else import TASKS, SomethingElse

    return Kind(lambda: list(TASKS), SomethingElse, media_by_task=True, random_crop=True)


def _synthetic_cater(camera: Literal["static", "moving"]) -> Synthetic:
    from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater

    return Synthetic("cater", partial(SyntheticCater, camera=camera), write_cater, "videos")


def _synthetic_acre(regime: Literal["iid", "comp", "sys"]) -> Synthetic:
    from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, write_acre

    def spec(val: int, **options: Any) -> SyntheticAcre:
        """As many problems for the curves, which are of ``val``, as for results, of ``test``."""
        return SyntheticAcre(regime=regime, val=val, test=val, **options)

    return Synthetic("acre", spec, write_acre, "problems")


def _synthetic_something_else() -> Synthetic:
    from ivcl_fast.data.synthetic.something_else.write import (
        SyntheticSomethingElse,
        write_something_else,
    )

    return Synthetic("something-else", SyntheticSomethingElse, write_something_else, "videos")


# Imported when asked for: nobody needs all of them.
_KINDS: dict[str, Callable[[], Kind]] = {
    "cater": _cater,
    "acre": _acre,
    "something-else": _something_else,
}
_SYNTHETIC: dict[str, Callable[[], Synthetic]] = {
    "": partial(_synthetic_cater, "static"),
    "cater": partial(_synthetic_cater, "static"),
    "static": partial(_synthetic_cater, "static"),
    "moving": partial(_synthetic_cater, "moving"),
    "acre-iid": partial(_synthetic_acre, "iid"),
    "acre-comp": partial(_synthetic_acre, "comp"),
    "acre-sys": partial(_synthetic_acre, "sys"),
    "something-else": _synthetic_something_else,
}


def find(name: str) -> tuple[Kind, Path | Synthetic]:
    """A data set's format, and its folder or how it is written.

    Raises :class:`UserError` for an unknown name.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "synthetic" and rest in _SYNTHETIC:
        synthetic = _SYNTHETIC[rest]()
        return _KINDS[synthetic.kind](), synthetic
    if prefix in _KINDS and rest:
        return _KINDS[prefix](), Path(rest)
    raise UserError(f"--data: {name!r} is not {ACCEPTED}")


def clip_frames(name: str) -> int | None:
    """Frames of every clip of a data set, or None where that is free to choose."""
    return find(name)[0].frames


def check_frame_labels(name: str, objective: str) -> None:
    """Raises :class:`UserError` for a data set that a supervised objective cannot learn from."""
    if not find(name)[0].frame_labels:
        raise UserError(
            f"--objective: {objective} needs labels of single frames, which {name} has not; "
            "accepted with it: cater:DIR, synthetic, synthetic:static or synthetic:moving"
        )


def find_task(name: str, task: str) -> str:
    """The task of that name, or the usual one of the data set for ``auto``.

    Raises :class:`UserError` for an unknown data set or task.
    """
    tasks = find(name)[0].tasks()
    if task == "auto":
        return tasks[0]
    if task not in tasks:
        raise UserError(f"--task: {task!r} is not one of {', '.join(tasks)}")
    return task
