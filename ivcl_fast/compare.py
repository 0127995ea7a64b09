"""``python -m ivcl_fast.compare RUN RUN...``: compare finished runs on the same clips.

The first table has the scores of each run, and its difference from the first run on the same clips.
The second table has the settings that differ. ``--out FILE.html`` writes a page with the training
curves of all runs. Models do not run again, because a run's folder has its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.errors import UserError, flag
from ivcl_fast.files import read_json
from ivcl_fast.report.page import run_names, write_page
from ivcl_fast.report.run import CLIPS, SCORES
from ivcl_fast.report.study import compared_runs
from ivcl_fast.report.tables import Table
from ivcl_fast.training.settings import CHANGEABLE, load_settings


@dataclass(frozen=True)
class CompareConfig:
    """Runs to compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN...")]
    """Folders of finished runs on the same data; the others are compared with the first."""
    out: Path | None = None
    """Also write the scores and the training curves of all runs to this .html file."""


def compare(config: CompareConfig) -> None:
    """Print the tables of scores and of settings; write the page if requested.

    Raises :class:`UserError` for fewer than two runs, for a run without scores, and for runs whose
    clips or labels differ.
    """
    runs = config.runs
    if config.out is not None and config.out.suffix.lower() != ".html":
        raise UserError(f"--out: expected a file that ends in .html, got {config.out}")
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError("RUN: expected at least two runs, each of them once")
    for run in runs:
        if not (run / SCORES).is_file():
            raise UserError(f"RUN: expected a finished run with {SCORES}, got {run}")
    check_clips(runs)
    names = run_names(runs)
    scores = compared_runs(dict(zip(names, runs, strict=True)))
    scores.table.print(f"{scores.title}. {scores.note}")
    settings_that_differ(names, runs).print("Settings that differ")
    if config.out is not None:
        opened = [FinishedRun.open(run, "cpu") for run in runs]
        write_page(config.out, opened, sections=[scores])
        print(f"open: {config.out}")


def check_clips(runs: Sequence[Path]) -> None:
    """Raise :class:`UserError` if a run's clips or labels differ from those of the first run."""
    measured = []
    for run in runs:
        clips = read_json(run / CLIPS, "answers") if (run / CLIPS).is_file() else ()
        measured.append({(clip["name"], clip["video"]): clip["label"] for clip in clips})
    first = measured[0]
    for run, labels in zip(runs, measured, strict=True):
        common = labels.keys() & first.keys()
        if (first and not common) or any(labels[clip] != first[clip] for clip in common):
            raise UserError(f"RUN: expected runs on the same clips as {runs[0]}, got {run}")


def settings_that_differ(names: Sequence[str], runs: Sequence[Path]) -> Table:
    """Return a table of the settings that differ and may change results."""
    settings = [load_settings(run).flat() for run in runs]
    rows = [
        [flag("data" if name == "source" else name), *(str(of[name]) for of in settings)]
        for name in settings[0]
        if name not in CHANGEABLE and len({str(of[name]) for of in settings}) > 1
    ]
    return Table(["setting", *names], rows)


def main() -> None:
    compare(parse(CompareConfig, "compare", __doc__))


if __name__ == "__main__":
    run_command(main)
