"""``python -m ivcl_fast.evaluate RUN``: measure a finished run again, or answer for one video."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from ivcl_fast.analysis.clips import ClipReader
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.files import write_json
from ivcl_fast.report.tables import results_table

Classifier = Literal["finetune", "scratch", "last-frame"]
ANSWERS = 5
"""Likeliest answers that are printed."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train, or of one of its classifiers."""
    model: Classifier | None = None
    """Which of the run's classifiers: finetune (the default), scratch (without pretraining) or
    last-frame."""
    split: str | None = None
    """Split to measure on; by default the one that results are reported on (val for CATER, test for
    ACRE, validation for Something-Else)."""
    out: Path | None = None
    """Also write the scores, the classes, and every clip's label, answer and logits to this JSON
    file."""
    predict: Path | None = None
    """Answer for this instead: a video file, or a folder with its frames as images in the order of
    their names; for ACRE a folder with six panels of context, then the query."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)


def evaluate(config: EvaluateConfig) -> None:
    """Print the scores of a run's classifier, chance beside each, or its answers for one file."""
    check_flags(config)
    run = FinishedRun.open(config.run, config.device, config.where)
    name = chosen_model(run, config.model)
    if config.predict is not None:
        clip = ClipReader(run).file(config.predict, "--predict")
        for answer, score in run.answer(run.load(name), clip.frames, ANSWERS).items():
            print(f"{score:6.1%}  {answer}")
        return
    splits = run.dataset.splits
    if config.split not in (None, *splits):
        raise UserError(f"--split: {config.split!r} is not one of {', '.join(splits)}")
    split = config.split or run.data.eval_split
    evaluation = run.evaluate(run.load(name), split)
    result = evaluation.result(f"{name} on {split}")
    results_table([result]).print("95 % intervals in brackets")
    if config.out is not None:
        data = run.config.data
        about = {"run": str(run.folder), "data": data.source, "task": data.task}
        about |= {"model": name, "split": split}
        found = {"scores": scores_as_json(result.scores), "classes": run.classes.names}
        logits = [{"logits": row} for row in evaluation.logits.tolist()]
        clips = [a | b for a, b in zip(evaluation.by_clip(), logits, strict=True)]
        write_json(config.out, {**about, **found, "clips": clips})


def check_flags(config: EvaluateConfig) -> None:
    """Raise :class:`UserError`, before any work, if the result could not be written."""
    if config.predict is not None:
        for flag, value in (("--out", config.out), ("--split", config.split)):
            if value is not None:
                raise UserError(f"{flag}: not accepted with --predict, which measures nothing")
    out = config.out
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise UserError(f"--out: {out} cannot be written; accepted: a file in a folder that exists")


def chosen_model(run: FinishedRun, flag: Classifier | None) -> str:
    """Return the folder of the classifier that ``--model``, or the run's argument, names.

    Raises :class:`UserError` if it is not finished, or no classifier.
    """
    name = flag or run.chosen or "finetune"
    finished = [name for name in get_args(Classifier) if run.finished(name)]
    if name in finished:
        return name
    if not finished:
        raise UserError(
            f"{run.folder}: has not finetuned yet; continue it with python -m ivcl_fast.train "
            f"--resume {run.folder}"
        )
    if flag is None:
        raise UserError(
            f"{run.folder / name}: not a finished classifier; type python -m ivcl_fast.evaluate "
            f"{run.folder} --model {' or '.join(finished)}"
        )
    raise UserError(
        f"--model: {name!r} is not finished in {run.folder}; accepted: " + ", ".join(finished)
    )


def main() -> None:
    """Run the command."""
    evaluate(parse(EvaluateConfig, "evaluate", __doc__))


if __name__ == "__main__":
    run_command(main)
