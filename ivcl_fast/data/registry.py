"""Data sources by name: how each data set is opened, and how synthetic ones are written.

A source is ``FORMAT:DIR``, a folder in the published format of a data set, or ``synthetic...``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ivcl_fast.data.dataset import Dataset
from ivcl_fast.errors import UserError


@dataclass(frozen=True)
class DatasetFormat:
    """The published format of a data set."""

    open: Callable[[Path, str], Dataset]
    """Opens a task of the data set in a folder."""
    tasks: tuple[str, ...]
    """Names of the tasks, the default first."""
    media_by_task: bool = False
    """Whether each task has its own media, and so its own frame store."""
    frames: int | None = None
    """Frames of every clip, if the data set determines them; models need that many."""
    random_crop: bool = False
    """Whether a part of the frame may be used in training; not if the answer is a place in it."""
    frame_labels: bool = False
    """Whether it has labels of single frames, for supervised pretraining."""


@dataclass(frozen=True)
class Synthetic:
    """A synthetic data set, which is written when it is needed."""

    format: str
    """``cater``, ``acre`` or ``something-else``."""
    spec: Callable[..., Any]
    """Takes train and val (numbers of items to train and to evaluate on), size and seed."""
    write: Callable[..., Path]
    """Takes folder, spec, workers and progress."""
    unit: str
    """Name of the items, in the plural."""


def _cater() -> DatasetFormat:
    from ivcl_fast.data.formats.cater import TASKS, Cater

    return DatasetFormat(Cater, tuple(TASKS), frame_labels=True)


def _acre() -> DatasetFormat:
    from ivcl_fast.data.formats.acre import CONTEXT, Acre

    return DatasetFormat(Acre, ("acre",), frames=len(CONTEXT) + 1)


def _something_else() -> DatasetFormat:
    from ivcl_fast.data.formats.something_else import TASKS, SomethingElse

    return DatasetFormat(SomethingElse, tuple(TASKS), media_by_task=True, random_crop=True)


def _synthetic_cater(camera: Literal["static", "moving"]) -> Synthetic:
    from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater

    return Synthetic("cater", partial(SyntheticCater, camera=camera), write_cater, "videos")


def _synthetic_acre(regime: Literal["iid", "comp", "sys"]) -> Synthetic:
    from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, write_acre

    def spec(val: int, **options: Any) -> SyntheticAcre:
        """Make as many problems for ``test``, the results, as for ``val``, the curves."""
        return SyntheticAcre(regime=regime, val=val, test=val, **options)

    return Synthetic("acre", spec, write_acre, "problems")


def _synthetic_something_else() -> Synthetic:
    from ivcl_fast.data.synthetic.something_else.write import (
        SyntheticSomethingElse,
        write_something_else,
    )

    return Synthetic("something-else", SyntheticSomethingElse, write_something_else, "videos")


# Modules of a data set are imported when it is asked for.
_FORMATS: dict[str, Callable[[], DatasetFormat]] = {
    "cater": _cater,
    "acre": _acre,
    "something-else": _something_else,
}
_SYNTHETIC: dict[str, Callable[[], Synthetic]] = {
    "cater": partial(_synthetic_cater, "static"),
    "static": partial(_synthetic_cater, "static"),
    "moving": partial(_synthetic_cater, "moving"),
    "acre-iid": partial(_synthetic_acre, "iid"),
    "acre-comp": partial(_synthetic_acre, "comp"),
    "acre-sys": partial(_synthetic_acre, "sys"),
    "something-else": _synthetic_something_else,
}


def parse_source(source: str, argument: str = "--data") -> tuple[DatasetFormat, Path | Synthetic]:
    """Return the format of a data source, and its folder or how to write it.

    Raises :class:`UserError`, which names ``argument``, for an unknown source.

    Example::

        >>> dataset_format, folder = parse_source("cater:all_actions")
        >>> dataset = dataset_format.open(folder, "localize")
    """
    prefix, _, rest = source.partition(":")
    if prefix == "synthetic" and (rest or "static") in _SYNTHETIC:
        synthetic = _SYNTHETIC[rest or "static"]()
        return _FORMATS[synthetic.format](), synthetic
    if prefix in _FORMATS and rest:
        return _FORMATS[prefix](), Path(rest)
    folders = ", ".join(f"{name}:DIR" for name in _FORMATS)
    made = ", ".join(f"synthetic:{name}" for name in _SYNTHETIC)
    raise UserError(
        f"{argument}: {source!r} is not a data source; accepted: {folders} for a folder in the "
        f"format of that data set; synthetic, {made}"
    )


def clip_frames(source: str) -> int | None:
    """Return the number of frames of every clip, or None if the data set does not determine it."""
    return parse_source(source)[0].frames


def check_frame_labels(source: str, objective: str) -> None:
    """Raise :class:`UserError` if a source has no labels for a supervised objective."""
    if not parse_source(source)[0].frame_labels:
        raise UserError(
            f"--objective: {objective} needs labels of single frames, which {source} does not "
            "have; accepted with it: cater:DIR, synthetic, synthetic:static or synthetic:moving"
        )


def find_task(source: str, task: str) -> str:
    """Return ``task``, or the default task of the source for ``auto``.

    Raises :class:`UserError` for an unknown source or task.
    """
    tasks = parse_source(source)[0].tasks
    if task != "auto" and task not in tasks:
        raise UserError(f"--task: {task!r} is not one of {', '.join(tasks)}")
    return tasks[0] if task == "auto" else task
