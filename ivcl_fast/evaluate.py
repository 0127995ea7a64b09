"""``python -m ivcl_fast.evaluate RUN``: measure a finished run again, or answer for videos."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from ivcl_fast.analysis.clips import ClipReader
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.clip import images_in
from ivcl_fast.data.decode.images import is_image
from ivcl_fast.data.formats.own.video_folder import find_videos
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.tables import results_table
from ivcl_fast.text import printable

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
    """Split to measure on; by default the one that results are reported on (CATER: val; ACRE: test;
    Something-Else: validation; your own videos: test if there is one, else val)."""
    out: Path | None = None
    """Also write the scores, the classes, and every clip's label, answer and logits to this .json
    file; with --predict, write the answers to this .json or .csv file."""
    predict: Path | None = None
    """Answer for this instead of measuring: a video file, a folder with its frames as images in the
    order of their names, or a folder of videos; for ACRE a folder with six panels of context, then
    the query."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)


def evaluate(config: EvaluateConfig) -> None:
    """Print the scores of a run's classifier, chance beside each, or its answers for one file."""
    check_flags(config)
    run = FinishedRun.open(config.run, config.device, config.where)
    name = chosen_model(run, config.model)
    if config.predict is not None:
        predict(run, name, config.predict, config.out)
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


def predict(run: FinishedRun, name: str, path: Path, out: Path | None) -> None:
    """Print the likeliest answers for a video, or for each video of a folder; also write them.

    Videos of a folder that cannot be used are named with the reason. Raises :class:`UserError` for
    a single one, and for a folder of which none can be used.
    """
    reader, model = ClipReader(run), run.load(name)
    videos = videos_in(path) if clip_frames(run.config.data.source) is None else {}
    found: list[dict[str, Any]] = []
    for video, place in (videos or {path.name: path}).items():
        try:
            frames = reader.file(place, "--predict").frames
            found.append({"video": video, "answers": run.answer(model, frames, ANSWERS)})
        except UserError as error:
            if not videos:
                raise
            found.append({"video": video, "error": str(error).removeprefix("--predict ")})
    if videos and not any("answers" in one for one in found):
        raise UserError(f"--predict {path}: no video can be used; {found[0]['error']}")
    for one in found:
        if videos:
            print(printable(f"{one['video']}: {one.get('error', '')}"))
        for answer, score in one.get("answers", {}).items():
            print(f"{score:6.1%}  {printable(answer)}")
    if out is not None and out.suffix.lower() == ".csv":
        write_text(out, answers_as_csv(found))
    elif out is not None:
        write_json(out, found)


def videos_in(path: Path) -> dict[str, Path]:
    """Return the videos of a folder by name; none for a file or a folder of frames.

    Images beside videos, such as previews, are no frames. Raises :class:`UserError` for a folder
    with neither.
    """
    if not path.is_dir():
        return {}
    found = find_videos(path)
    if not found:
        raise UserError(
            f"--predict {path}: holds neither videos nor images; accepted: a video file, a folder "
            "with its frames as images, or a folder of videos"
        )
    are_frames = {one.name: is_image(one.files[0]) for one in found}
    if images_in(path) and all(are_frames.values()):
        return {}
    return {one.name: path / one.name if are_frames[one.name] else one.files[0] for one in found}


def answers_as_csv(found: Sequence[dict[str, Any]]) -> str:
    """Return a table of answers: a row for each of a video, or its error."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["video", "rank", "answer", "probability", "error"])
    for one in found:
        if "error" in one:
            table.writerow([one["video"], "", "", "", one["error"]])
        for rank, (answer, score) in enumerate(one.get("answers", {}).items(), 1):
            table.writerow([one["video"], rank, answer, f"{score:.6f}", ""])
    return text.getvalue()


def check_flags(config: EvaluateConfig) -> None:
    """Raise :class:`UserError`, before any work, if the result could not be written."""
    if config.predict is not None and config.split is not None:
        raise UserError("--split: not accepted with --predict, which measures nothing")
    out = config.out
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise UserError(f"--out: {out} cannot be written; accepted: a file in a folder that exists")
    accepted = (".json", ".csv") if config.predict is not None else (".json",)
    if out is not None and out.suffix.lower() not in accepted:
        raise UserError(f"--out: {out}; accepted: a file that ends in {' or '.join(accepted)}")


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
    evaluate(parse(EvaluateConfig, "evaluate", __doc__))


if __name__ == "__main__":
    run_command(main)
