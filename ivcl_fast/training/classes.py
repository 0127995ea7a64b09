"""The classes of a run, kept in its folder so that its models can be used without its data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.frame_labels import CLASSES
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_json, write_json
from ivcl_fast.models.ivcl import PretrainingModel, Supervised, pretraining_class

ANSWERS = "answers.json"
"""Name of the file in a run's folder that holds its :class:`Classes`."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes that a run's classifier distinguishes."""

    multi_label: bool
    """Whether several classes may apply to a clip."""
    names: list[str]
    """The classes in words, by number."""

    @classmethod
    def of(cls, dataset: Dataset) -> Classes:
        """Describe the classes of a data set."""
        return cls(dataset.multi_label, _names(dataset))

    @classmethod
    def read(cls, folder: Path) -> Classes | None:
        """Read the classes of the run in ``folder``, None if it has saved none."""
        file = folder / ANSWERS
        return cls(**read_json(file, "the classes of a run")) if file.is_file() else None

    def check_same(self, source: str, dataset: Dataset) -> None:
        """Raise :class:`UserError` unless a data set has these classes, in the same order.

        Whether a clip has one label or several has to be the same, too.
        """
        if dataset.num_classes and dataset.multi_label != self.multi_label:
            kinds = "one label per clip", "several labels per clip"
            raise UserError(
                f"--data: expected {kinds[self.multi_label]}, as the run's, got {source!r} with "
                f"{kinds[dataset.multi_label]}"
            )
        found = _names(dataset)
        if found != self.names:
            raise UserError(
                f"--data: expected the run's {len(self.names)} classes, got {source!r} with "
                f"{len(found)}" + _first_difference(self.names, found)
            )

    def write(self, folder: Path) -> None:
        """Write the classes into the run's folder."""
        write_json(folder / ANSWERS, dataclasses.asdict(self))


def _first_difference(expected: list[str], found: list[str]) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    return next((f"; class {i} is {b!r}, not {a!r}" for i, (a, b) in pairs if a != b), "")


def _names(dataset: Dataset) -> list[str]:
    return [dataset.describe(label) for label in range(dataset.num_classes)]


def pretraining_model(cfg: IVCLConfig) -> PretrainingModel:
    """Make an untrained pretraining model; a supervised one has the classes of its labels."""
    kind = pretraining_class(cfg)
    return kind(cfg, len(CLASSES[cfg.objective])) if issubclass(kind, Supervised) else kind(cfg)
