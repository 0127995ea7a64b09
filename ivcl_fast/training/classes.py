"""The classes of a run, kept in its folder so that no data are needed to use its models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.frame_labels import CLASSES
from ivcl_fast.errors import UserError
from ivcl_fast.manifest import read_recorded, write_recorded
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

    def __post_init__(self) -> None:
        words = isinstance(self.names, list) and all(isinstance(name, str) for name in self.names)
        if not (isinstance(self.multi_label, bool) and words and self.names):
            raise ValueError("multi_label has to be true or false, and names a list of strings")

    @classmethod
    def of(cls, dataset: Dataset) -> Classes:
        """Describe the classes of a data set."""
        return cls(dataset.multi_label, _names(dataset))

    @classmethod
    def read(cls, folder: Path) -> Classes | None:
        """Read what the run in ``folder`` has kept, None if nothing.

        Raises :class:`UserError` if the file is damaged.
        """
        file = folder / ANSWERS
        if not file.is_file():
            return None
        content = read_recorded(file)
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{file}: not the answers of a run ({error}); delete it to have it written again "
                "from the data set"
            ) from None

    def check_same(self, source: str, dataset: Dataset) -> None:
        """Raise :class:`UserError` unless a data set has these classes, in the same order.

        Nor may one have several labels per clip and the other one label: that is another task.
        """
        if dataset.num_classes and dataset.multi_label != self.multi_label:
            kinds = "one label per clip", "several labels per clip"
            raise UserError(
                f"--data: {source!r} has {kinds[dataset.multi_label]}; accepted: data with "
                f"{kinds[self.multi_label]}, as the run's"
            )
        found = _names(dataset)
        if len(found) != len(self.names):
            raise UserError(
                f"--data: {source!r} has {len(found)} classes; accepted: data with the run's "
                f"{len(self.names)}"
            )
        for number, (here, expected) in enumerate(zip(found, self.names, strict=True)):
            if here != expected:
                raise UserError(
                    f"--data: class {number} of {source!r} is {here!r}; accepted: data with the "
                    f"run's classes, of which this is {expected!r}"
                )

    def write(self, folder: Path) -> None:
        """Keep the classes in ``folder``, for :meth:`read`."""
        write_recorded(folder / ANSWERS, dataclasses.asdict(self))


def _names(dataset: Dataset) -> list[str]:
    return [dataset.describe(label) for label in range(dataset.num_classes)]


def pretraining_model(cfg: IVCLConfig) -> PretrainingModel:
    """Make an untrained model to pretrain, for the classes of its frame labels if it has any."""
    kind = pretraining_class(cfg)
    return kind(cfg, len(CLASSES[cfg.objective])) if issubclass(kind, Supervised) else kind(cfg)
