"""``python -m ivcl_fast.evaluate RUN``: evaluate a finished run, or answer for new videos."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ivcl_fast.analysis.clips import ClipReader
from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.dataset import is_image
from ivcl_fast.data.formats.custom.video_folder import find_videos
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.baselines import untrained_baselines
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.files import write_json
from ivcl_fast.report.run import write_results_page
from ivcl_fast.report.tables import results_table
from ivcl_fast.text import printable

CLASSIFIERS = "finetune", "last-frame"
"""Folders of a run that hold a classifier."""
ANSWERS = 5
"""Number of top answers to print."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Run to evaluate, and where to write the results."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or of a model, a packaged model (ivcl_fast/tiny-localize), or OWNER/NAME on
    the Hugging Face hub."""
    split: str | None = None
    """Split to evaluate on; by default the one used for reports (CATER: val; ACRE: test;
    Something-Else: validation; your own videos: test if there is one, else val)."""
    out: Path | None = None
    """Also write the scores, the classes, and the label, answer and logits of each clip to this
    .json file, and an .html page in which clips play beside it; with --predict, the answers."""
    predict: Path | None = None
    """Predict the answer for this instead: a video file, a folder of frames (images, ordered by
    name), or a folder of videos; for ACRE a folder of six context panels followed by the query."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: str | None = None
    """The run's data if it has moved, or other data of the same kind, such as cater:DIR."""


def evaluate(config: EvaluateConfig) -> None:
    """Print a classifier's scores with chance and baselines, or its answers for new videos."""
    check_flags(config)
    run = FinishedRun.open(config.run, config.device, config.data)
    name = chosen_classifier(run)
    if config.predict is not None:
        predict(run, name, config.predict, config.out)
        return
    splits = run.dataset.splits
    if config.split not in (None, *splits):
        raise UserError(f"--split: expected one of {', '.join(splits)}, got {config.split!r}")
    split = config.split or run.data.eval_split
    model = run.load(name)
    evaluation = run.evaluate(model, split)
    result = evaluation.result(run.title(name))
    others = untrained_baselines(run.data, split, evaluation, run.config.model.num_frames)
    if run.finished("last-frame") and name == "finetune":
        last = run.evaluate(run.load("last-frame"), split)
        others.insert(0, last.result(run.title("last-frame")))
    results_table([result, *others]).print(f"on {split}; 95 % intervals in brackets")
    if config.out is not None:
        data = run.config.data
        about = {"run": str(run.folder), "data": data.source, "task": data.task}
        about |= {"model": name, "split": split}
        found = {"scores": scores_as_json(result.scores), "classes": run.classes.names}
        logits = [{"logits": row} for row in evaluation.logits.tolist()]
        clips = [a | b for a, b in zip(evaluation.by_clip(), logits, strict=True)]
        write_json(config.out, {**about, **found, "clips": clips})
        page = config.out.with_suffix(".html")
        models = run.models() if name == "finetune" else {"finetuned": model}
        write_results_page(page, run, models, [result, *others], evaluation)
        print(f"open: {page}")


def predict(run: FinishedRun, name: str, path: Path, out: Path | None) -> None:
    """Print the answers for a video, or for each video of a folder, and write them to ``out``.

    Unusable videos in a folder are listed with the reason. Raises :class:`UserError` if a single
    video, or every video in a folder, is unusable.
    """
    model = run.load(name)
    reader = ClipReader(run, num_frames=model.cfg.num_frames)
    videos = {} if clip_frames(run.config.data.source) else videos_in(path, "--predict")
    found: list[dict[str, Any]] = []
    try:
        for video, place in (videos or {path.name: path}).items():
            try:
                answers = run.answer(model, reader.file(place, "--predict").frames, ANSWERS)
            except UserError as error:
                if not videos:
                    raise
                reason = str(error).removeprefix("--predict ")
                found.append({"video": video, "error": reason})
                print(printable(f"{video}: {reason}"), flush=True)
                continue
            found.append({"video": video, "answers": answers})
            if videos:
                print(printable(f"{video}:"))
            for answer, score in answers.items():
                value = f"{score:6.1%}" if run.predicts_classes else f"{score:6.2f}"
                print(f"{value}  {printable(answer)}", flush=True)
    finally:  # also after Ctrl-C
        usable = any("answers" in one for one in found)
        if out is not None and usable:
            write_json(out, found)
    if not usable:
        raise UserError(f"--predict {path}: no video can be used; {found[0]['error']}")


def videos_in(path: Path, flag: str) -> dict[str, Path]:
    """Return the videos in a folder by name; empty for a file or a folder of frames.

    Images next to videos or folders, such as previews, are ignored. Raises :class:`UserError`,
    naming ``flag``, for a folder with neither.
    """
    if not path.is_dir():
        return {}
    found = find_videos(path)
    if not found:
        raise UserError(
            f"{flag}: expected a video file, a folder with its frames as images, or a folder of "
            f"videos, got {path}"
        )
    first = {one.name: one.files[0] for one in found}
    places = {name: file.parent if is_image(file) else file for name, file in first.items()}
    return {} if path in places.values() else places  # a folder of frames


def check_flags(config: EvaluateConfig) -> None:
    """Raise :class:`UserError`, before any work, if the result could not be written."""
    if config.predict is not None and config.split is not None:
        raise UserError("--split: expected no --predict, got both")
    if (out := config.out) is None:
        return
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"--out: expected a file in a folder with write access, got {out}")
    if out.suffix.lower() != ".json":
        raise UserError(f"--out: expected a file that ends in .json, got {out}")


def chosen_classifier(run: FinishedRun) -> str:
    """Return the name of the run's classifier, by default ``finetune``.

    Raises :class:`UserError` if it is unfinished or not a classifier.
    """
    name = run.chosen or "finetune"
    if name not in CLASSIFIERS or not run.finished(name):
        raise UserError(
            f"{run.folder}: expected a finished {' or '.join(CLASSIFIERS)} model; continue the run "
            "with python -m ivcl_fast.train --resume, or finetune it with --stage finetune --init "
            f"{run.folder}"
        )
    return name


def main() -> None:
    evaluate(parse(EvaluateConfig, "evaluate", __doc__))


if __name__ == "__main__":
    run_command(main)
