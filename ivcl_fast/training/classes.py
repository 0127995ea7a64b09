"""The classes of a run, saved in its folder so that its models can be used without its data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.dataset import Dataset, target_of
from ivcl_fast.data.frame_labels import CLASSES
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_json, write_json
from ivcl_fast.models.ivcl import PretrainingModel, Supervised, pretraining_class

ANSWERS = "answers.json"
"""File in a run's folder with its :class:`Classes`."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """The outputs of a run's classifier."""

    target: str
    """Kind of label, a key of :data:`~ivcl_fast.evaluation.targets.TARGETS`."""
    names: list[str]
    """Names of the classes or of the numbers, in order."""

    @classmethod
    def of(cls, dataset: Dataset) -> Classes:
        """Return the classes of a data set."""
        return cls(target_of(dataset), [*map(dataset.describe, range(dataset.num_classes))])

    @classmethod
    def read(cls, folder: Path) -> Classes | None:
        """Read the classes of the run in ``folder``, or return None if none are saved."""
        file = folder / ANSWERS
        return cls(**read_json(file, "the classes of a run")) if file.is_file() else None

    def check_same(self, source: str, dataset: Dataset) -> None:
        """Raise :class:`UserError` unless a data set has these classes, in the same order."""
        found = Classes.of(dataset)
        if found != self:
            pairs = enumerate(zip(self.names, found.names, strict=False))
            change = next((f"; class {i} is {b!r}, not {a!r}" for i, (a, b) in pairs if a != b), "")
            raise UserError(
                f"--data: expected the run's {len(self.names)} classes (target {self.target}), got "
                f"{source!r} with {len(found.names)} (target {found.target}){change}"
            )

    def write(self, folder: Path) -> None:
        """Write the classes into the run's folder."""
        write_json(folder / ANSWERS, dataclasses.asdict(self))


def pretraining_model(cfg: IVCLConfig) -> PretrainingModel:
    """Build an untrained pretraining model; a supervised model has the classes of its labels."""
    kind = pretraining_class(cfg)
    return kind(cfg, len(CLASSES[cfg.objective])) if issubclass(kind, Supervised) else kind(cfg)
