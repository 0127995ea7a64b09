"""The tables of README.md and the pages of studies, written from the studies' committed results.

``python -m docs.studies_tables`` replaces what stands between these markers and ``<!-- end -->``:

``<!-- studies -->``
    what each study asks and how many runs it takes, from ``ivcl_fast/studies/definitions.py``;
``<!-- tables: STUDY -->``
    the first table of each data set and task in ``docs/results/STUDY/study.md``, the lines fitted
    to them, and the command that made them;
``<!-- variants: STUDY -->``
    top-1 of each variant, from ``docs/results/STUDY/results.json``;
``<!-- summary -->``
    the scores of :data:`SUMMARY`, from the ``results.json`` of their studies.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path

from docs.markers import write_anew
from ivcl_fast.report.scaling import HEADING
from ivcl_fast.report.tables import Table
from ivcl_fast.studies.definitions import STUDIES
from ivcl_fast.studies.runner import plan_jobs

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = tuple(ROOT / page for page in ("README.md", "docs/studies.md", "docs/earlier_studies.md"))
PRETRAINING = ("pretraining",)
COMP, SYS = ("causes-comp", "causes-comp-random"), ("causes-sys", "causes-sys-random")
SUMMARY = {
    "CATER, visible": (PRETRAINING, "localize on synthetic", "visible", "top1"),
    "CATER, hidden": (PRETRAINING, "localize on synthetic", "hidden", "top1"),
    "ACRE Comp": (COMP, "acre on synthetic:acre-comp", "all", "query"),
    "ACRE Sys": (SYS, "acre on synthetic:acre-sys", "all", "query"),
}
"""Columns of the summary: folders of results, table, group of clips and metric. Of several folders,
which are recipes, each row has the better one."""


def studies() -> list[str]:
    """Return the table of all studies."""
    rows = []
    for name, study in STUDIES.items():
        pretrainings, finetunings = plan_jobs(study, Path(name), 1, ())
        labels = "; ".join(dict.fromkeys(variant.label for variant in study.variants))
        counts = [str(len(pretrainings)), str(len(finetunings))]
        rows.append([f"`{name}`", study.question, f"{study.varied}: {labels}", *counts])
    header = ["study", "question", "varies", "pretrainings", "finetunings per seed"]
    return Table(header, rows).markdown()


def tables(study: str) -> list[str]:
    """Return what a study's committed page says first of each data set and task, and fitted lines.

    The last line is the study's command.
    """
    page = (RESULTS / study / "study.md").read_text()
    parts = re.findall(r"^## (.*?)\n\n(.*?)\n+(?=## |!\[)", page, re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^`(python -m ivcl_fast\.sweep .*?)`", page, re.MULTILINE)
    shown = []
    for title, text in parts:
        heading, table, *others = text.split("\n\n")
        fitted = others[others.index(HEADING) :] if HEADING in others else []
        shown += [*([f"`{title}`"] if len(parts) > 1 else []), heading, table, *fitted]
    return "\n\n".join([*shown, f"Command: `{command}`"]).splitlines()


def variants(study: str) -> list[str]:
    """Return top-1 of each variant of a study, side by side."""
    ((title, scores),) = values(study).items()
    cells = [percent((study,), title, name, "all", "top1") for name in scores]
    return Table([STUDIES[study].varied, *scores], [["top-1", *cells]]).markdown()


def summary() -> list[str]:
    """Return the table of :data:`SUMMARY`, with a row for each model or baseline."""
    names = dict.fromkeys(
        name for (study, *_), title, *_ in SUMMARY.values() for name in values(study)[title]
    )
    rows = []
    for name in names:
        cells = [percent(*column[:2], name, *column[2:]) for column in SUMMARY.values()]
        rows.append([name, *cells])
    return Table(["pretraining, or baseline", *SUMMARY], rows).markdown()


def values(study: str) -> dict:
    """Return a study's scores: by table, variant, group of clips and metric, one for each seed."""
    return json.loads((RESULTS / study / "results.json").read_text())["values"]


def percent(studies: tuple[str, ...], title: str, name: str, group: str, metric: str) -> str:
    """Return the mean over seeds in percent, the best of the studies that have measured it."""
    scores = [values(study)[title].get(name, {}).get(group, {}) for study in studies]
    means = [statistics.fmean(score[metric]) for score in scores if metric in score]
    return f"{100 * max(means):.0f} %" if means else ""


KINDS = {"studies": studies, "tables": tables, "variants": variants, "summary": summary}

if __name__ == "__main__":
    argparse.ArgumentParser("python -m docs.studies_tables", description=__doc__).parse_args()
    write_anew(PAGES, KINDS)
