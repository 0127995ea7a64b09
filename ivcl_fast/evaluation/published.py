"""Published scores, which a report shows next to a run's if the data set is the published one.

``published.csv`` contains only scores read in the cited source. IV-CL's scores are not included,
because no source for them was available.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from ivcl_fast.data.synthetic.writer import read_spec

if TYPE_CHECKING:
    from ivcl_fast.data.dataset import Dataset

PERCENT = ("top1", "top5", "query", "problem")
METRICS = (*PERCENT, "l1")


@dataclass(frozen=True)
class Published:
    """One model's scores on one task."""

    folder: str
    """Folder name of the published data set, in lower case; empty: any name."""
    task: str
    model: str
    scores: dict[str, float]
    """Values by metric, named as in ``scores.json``: fractions, ``l1`` in cells."""
    source: str
    """The paper or page that they are from."""


def read() -> list[Published]:
    """Read all of ``published.csv``."""
    with (files(__package__) / "published.csv").open() as file:
        return [
            Published(
                row["folder"],
                row["task"],
                row["model"],
                {m: float(row[m]) / (100 if m in PERCENT else 1) for m in METRICS if row[m]},
                row["source"],
            )
            for row in csv.DictReader(file)
        ]


def published(dataset: Dataset) -> list[Published]:
    """Return published scores on a data set and task; empty for a synthetic one."""
    if read_spec(dataset.root) is not None:
        return []
    folder = dataset.root.resolve().name.lower()
    return [row for row in read() if row.task == dataset.task and row.folder in ("", folder)]
