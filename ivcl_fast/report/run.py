"""The report of a run: its table of results in ``report.md``, and a page with clips."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ivcl_fast.analysis.finished_runs import FinishedRun, Model
from ivcl_fast.evaluation.baselines import CONE, COUNTING, LAST_FRAME
from ivcl_fast.evaluation.evaluate import Evaluation, Result, scores_as_json
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.clips import describe_clip, evaluated_clips
from ivcl_fast.report.collapse import measure_collapse
from ivcl_fast.report.page import PAGE, Section, write_page
from ivcl_fast.report.tables import METRIC_NAMES, results_table
from ivcl_fast.text import markdown

LOWER_IS_BETTER = ("l1", "distance")
GUESSES = ("chance", *(f"“{title}" for title in (LAST_FRAME, CONE, COUNTING)))
"""Beginnings of the names of baselines without memory or reasoning in the summary."""
REPORT = "report.md"
SCORES = "scores.json"
"""File in a run's folder with its table of results."""
CLIPS = "clips.json"
"""File in a run's folder with the finetuned model's answer to each clip."""


def write_report(
    run: FinishedRun, results: Sequence[Result], evaluation: Evaluation | None
) -> None:
    """Write ``report.md``, ``report.html``, ``clips.json`` and ``scores.json`` to the run's folder.

    ``results``: rows of the table, the finetuned model first; ``evaluation``: its answers. Both are
    empty if there was only pretraining.
    """
    config = run.config
    parts = [
        f"# {run.folder.name}",
        f"{markdown(run.describe())} "
        "Settings: [config.json](config.json), records: [metrics.jsonl](metrics.jsonl).",
    ]
    if config.quick:
        parts.append("A `--quick` run shows that every part runs; its scores mean nothing.")
    if evaluation is not None:
        curve = f"The training curve is on {run.data.measured_in_training}."
        heading = f"On `{run.data.eval_split}`; 95 % intervals in brackets. {curve}"
        parts += ["## Results", markdown(summary(results)), heading, str(results_table(results))]
    if bad := run.data.bad_files:
        first = markdown(": ".join(next(iter(bad.items()))))
        parts.append(f"{len(bad)} videos could not be used, such as {first}.")
    others = list[Section]()
    if config.model.objective == "slot_attention" and run.finished("pretrain"):
        section, warning = measure_collapse(run, {"pretrained": run.load("pretrain")})
        others.append(section)
        if warning:
            print(warning)
            parts.append(warning)
    if config.output.pictures:
        write_results_page(run.folder / PAGE, run, run.models(), results, evaluation, others)
        parts.append(f"Curves, and clips that play: [{PAGE}]({PAGE}).")
    parts.append(f"torch {torch.__version__}, {run.device}, {platform.machine()}.")
    write_text(run.folder / REPORT, "\n\n".join(parts) + "\n")
    if evaluation is not None:
        write_json(run.folder / CLIPS, answers_by_clip(results, evaluation))
        # Written last: it marks a finished run.
        scores = {result.title: scores_as_json(result.scores) for result in results}
        write_json(run.folder / SCORES, scores)


def write_results_page(
    path: Path,
    run: FinishedRun,
    models: Mapping[str, Model],
    results: Sequence[Result],
    evaluation: Evaluation | None,
    others: Sequence[Section] = (),
) -> None:
    """Write a page with the table of results, if there are any, others, and a gallery of clips."""
    sections = list[Section]()
    if results:
        table = results_table(results, run.config.seed)
        sections.append(Section("Results", summary(results), table))
    sections += others
    chosen = evaluated_clips(run, models, evaluation)
    clips = (describe_clip(run, models, *clip) for clip in chosen)
    write_page(path, [run], clips, sections, results, evaluation)


def summary(results: Sequence[Result]) -> str:
    """Compare the first result with chance and the other results, and say what that shows.

    It is about the first metric, on clips that end with a hidden snitch if these are known.
    """
    first, group = results[0], "hidden" if "hidden" in results[0].scores else "all"
    metric, score = next(iter(first.scores[group].items()))
    others = {"chance": score.chance} | {
        f"“{result.title}”": result.scores[group][metric].value
        for result in results[1:]
        if group in result.scores
    }
    guesses = {title: others[title] for title in others if title.startswith(GUESSES)}
    comparisons = []
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for title, value in others.items():
        is_inside = score.low <= value <= score.high
        better = sign * value < sign * score.value
        how = "level with" if is_inside else "better than" if better else "worse than"
        comparisons.append(f"{how} {title} ({score.format(value)})")
    best = max(guesses, key=lambda title: sign * guesses[title])
    meaning = ""
    if len(guesses) > 1:
        meaning = " This is better than chance and than every baseline without memory or reasoning."
    if min(sign * score.low, sign * score.high) <= sign * guesses[best]:
        meaning = f" This is not clearly better than {best}, so it does not show reasoning."
    clips = "all clips" if group == "all" else "clips that end with a hidden snitch"
    return (
        f"On {clips}, “{first.title}” has {METRIC_NAMES[metric]} "
        f"{score.format(score.value)}: {', '.join(comparisons)}."
    ) + meaning


def answers_by_clip(results: Sequence[Result], evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the finetuned model's answers, each with the ``correct`` value of every result.

    A multi-label task has no ``correct``. A clip that a result lacks, because its video became
    unusable, has no value for it.
    """
    clips = evaluation.by_clip()
    for result in results:
        for clip in clips:
            if result.correct is not None and clip["name"] in result.correct:
                correct = clip.setdefault("correct", {})
                correct[result.title] = result.correct[clip["name"]]
    return clips
