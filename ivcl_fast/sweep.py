"""``python -m ivcl_fast.sweep STUDY``: run a study, which compares several variants in one table.

Every variant is pretrained (once, or more often with ``--pretrainings``) and finetuned with several
seeds; everything else is equal. Flags of ``ivcl_fast.train``, such as ``--data`` and ``--preset``,
apply to every run; ``--quick`` runs every part once. A study that was stopped is continued by the
same command. Several GPUs share the runs; with ``--parallel`` several runs share the cores of a
CPU, which is faster for small models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ivcl_fast.command import long_work, parse, run_command
from ivcl_fast.studies.definitions import STUDIES
from ivcl_fast.studies.runner import run_study
from ivcl_fast.train import train

QUESTIONS = "".join(f"\n  {name}: {study.question}" for name, study in STUDIES.items())


@dataclass(frozen=True)
class SweepConfig:
    """Flags of the command."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")]
    """The study; see above."""
    seeds: int = 3
    """Number of finetunings of every variant."""
    pretrainings: int = 1
    """Number of pretrainings of every variant; its finetunings start from them in turn."""
    parallel: int | None = None
    """Number of runs at a time; by default one per GPU, or one on a CPU."""
    out: Path = Path("sweeps")
    """Folder that holds the studies."""


def main() -> None:
    config, flags = parse(
        SweepConfig, "sweep", __doc__ + "\n\nStudies:" + QUESTIONS, return_unknown_args=True
    )
    with long_work("the same command continues"):
        folder = run_study(
            config.study,
            tuple(flags),
            config.out,
            train,
            config.seeds,
            config.parallel,
            config.pretrainings,
        )
    print(f"study: {folder / 'study.md'}")


if __name__ == "__main__":
    run_command(main)
