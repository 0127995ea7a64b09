"""``python -m ivcl_fast.compare RUN RUN...``: compare finished runs on the same clips.

The first table has the scores of each run, and its difference from the first run on the same clips.
The second table has the settings that differ. ``--out FILE.md`` writes both, and a page with the
training curves of all runs. Models do not run again, because a run's folder has its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

import tyro

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.errors import UserError, flag
from ivcl_fast.files import write_text
from ivcl_fast.report.page import write_page
from ivcl_fast.report.run import CLIPS, SCORES
from ivcl_fast.report.study import compared_runs, read_answers
from ivcl_fast.report.tables import Table
from ivcl_fast.text import markdown
from ivcl_fast.training.settings import CHANGEABLE, load_settings


@dataclass(frozen=True)
class CompareConfig:
    """What to compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN...")]
    """Folders of finished runs on the same data; the others are compared with the first."""
    out: Path | None = None
    """Also write the tables to this Markdown file, and a page with training curves beside
    it, as .html."""


def comparison(runs: Sequence[Path]) -> str:
    """Return the tables of scores and of settings in Markdown.

    Raises :class:`UserError` for fewer than two runs, for a run without scores, and for runs whose
    clips or labels differ.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError("RUN: expected at least two runs, each of them once")
    for run in runs:
        if not (run / SCORES).is_file():
            raise UserError(f"RUN: expected a finished run with {SCORES}, got {run}")
    labels = [*map(markdown, short_names(runs))]
    check_clips(runs)
    scores = compared_runs(dict(zip(labels, runs, strict=True)))
    parts = [
        f"{scores.title}. {scores.note}",
        str(scores.table),
        settings_that_differ(labels, runs),
    ]
    return "\n\n".join(parts) + "\n"


def short_names(runs: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as few as make the names differ."""
    parts = [run.resolve().parts for run in runs]
    length = next(n for n in count(1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def check_clips(runs: Sequence[Path]) -> None:
    """Raise :class:`UserError` if a run's clips or labels differ from those of the first run."""
    measured = []
    for run in runs:
        clips = read_answers(run / CLIPS) if (run / CLIPS).is_file() else ()
        measured.append({(clip["name"], clip["video"]): clip["label"] for clip in clips})
    first = measured[0]
    for run, labels in zip(runs, measured, strict=True):
        common = labels.keys() & first.keys()
        if (first and not common) or any(labels[clip] != first[clip] for clip in common):
            raise UserError(f"RUN: expected runs on the same clips as {runs[0]}, got {run}")


def settings_that_differ(labels: Sequence[str], runs: Sequence[Path]) -> str:
    """Return a table of the settings that differ and may change results."""
    settings = [load_settings(run).flat() for run in runs]
    rows = [
        [f"`{flag('data' if name == 'source' else name)}`", *(str(of[name]) for of in settings)]
        for name in settings[0]
        if name not in CHANGEABLE and len({str(of[name]) for of in settings}) > 1
    ]
    if not rows:
        return "Their settings are the same."
    return f"Settings that differ:\n\n{Table(['setting', *labels], rows)}"


def main() -> None:
    config = parse(CompareConfig, "compare", __doc__)
    text = comparison(config.runs)
    print(text, end="")
    if config.out is not None:
        page = config.out.with_suffix(".html")
        runs = [FinishedRun.open(run, "cpu") for run in config.runs]
        scores = compared_runs(dict(zip(short_names(config.runs), config.runs, strict=True)))
        write_page(page, runs, sections=[scores])
        write_text(config.out, f"{text}\nTraining curves: [{page.name}]({page.name})\n")


if __name__ == "__main__":
    run_command(main)
