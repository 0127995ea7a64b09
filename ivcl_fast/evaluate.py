"""``python -m ivcl_fast.evaluate RUN``: measure a finished run again, or answer for videos."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from ivcl_fast.analysis.clips import ClipReader
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.decode.images import is_image
from ivcl_fast.data.formats.custom.video_folder import find_videos
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.files import write_json, write_text
from ivcl_fast.progress import Bar
from ivcl_fast.report.tables import results_table
from ivcl_fast.text import printable

Classifier = Literal["finetune", "scratch", "last-frame"]
ANSWERS = 5
"""Likeliest answers that are printed."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or of a model, a packaged model (ivcl_fast/tiny-localize), or OWNER/NAME on
    the Hugging Face hub."""
    model: Classifier | None = None
    """Which of the run's classifiers: finetune (the default), scratch (without pretraining) or
    last-frame."""
    split: str | None = None
    """Split to measure on; by default the one that results are reported on (CATER: val; ACRE: test;
    Something-Else: validation; your own videos: test if there is one, else val)."""
    out: Path | None = None
    """Also write the scores, the classes, and every clip's label, answer and logits to this .json
    file; with --predict, write the answers to this .json or .csv file, for a folder instead of
    printing them; if it is interrupted, those that there are."""
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
        raise UserError(f"--split: expected one of {', '.join(splits)}, got {config.split!r}")
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
    """Answer for a video, or for each video of a folder; ``out``: the file to write answers to.

    Raises :class:`UserError` for a video that cannot be used, and for a folder with none.
    """
    model = run.load(name)
    reader = ClipReader(run, num_frames=model.cfg.num_frames)

    def answers(place: Path) -> dict[str, float]:
        return run.answer(model, reader.file(place, "--predict").frames, ANSWERS)

    if clip_frames(run.config.data.source) is None and (videos := videos_in(path)):
        predict_folder(path, videos, answers, out)
        return
    found = answers(path)
    print_answers(found)
    if out is not None:
        write_answers(out, [{"video": path.name, "answers": found}])


def predict_folder(
    path: Path,
    videos: dict[str, Path],
    answers: Callable[[Path], dict[str, float]],
    out: Path | None,
) -> None:
    """Print each video's answers as they come, or write all to a file, also if interrupted.

    Videos that cannot be used are named with the reason. Raises :class:`UserError` if all are.
    """
    found: list[dict[str, Any]] = []
    try:
        with Bar("answering", len(videos), "videos") if out else nullcontext() as bar:
            for video, place in videos.items():
                try:
                    found.append({"video": video, "answers": answers(place)})
                except UserError as error:
                    reason = str(error).removeprefix("--predict ")
                    found.append({"video": video, "error": reason})
                    print(printable(f"{video}: {reason}"), flush=True)
                else:
                    if bar is None:
                        print(printable(f"{video}: "))
                        print_answers(found[-1]["answers"])
                if bar is not None:
                    bar(len(found))
    finally:
        usable = any("answers" in one for one in found)
        if out is not None and usable:
            write_answers(out, found)
            if len(found) < len(videos):
                note = f"{out}: holds {len(found)} of {len(videos)} videos"
                print(printable(note), file=sys.stderr)
    if not usable:
        raise UserError(f"--predict {path}: no video can be used; {found[0]['error']}")


def print_answers(answers: dict[str, float]) -> None:
    """Print the likeliest answers for a video."""
    for answer, score in answers.items():
        print(f"{score:6.1%}  {printable(answer)}", flush=True)


def write_answers(out: Path, found: Sequence[dict[str, Any]]) -> None:
    """Write the answers for videos, or why there are none, as the name of the file says."""
    if out.suffix.lower() == ".csv":
        write_text(out, answers_as_csv(found))
    else:
        write_json(out, found)


def videos_in(path: Path) -> dict[str, Path]:
    """Return the videos of a folder by name; none for a file or a folder of frames.

    Images beside videos or folders, such as previews, are no frames. Raises :class:`UserError` for
    a folder with neither.
    """
    if not path.is_dir():
        return {}
    found = find_videos(path)
    if not found:
        raise UserError(
            f"--predict: expected a video file, a folder with its frames as images, or a folder of "
            f"videos, got {path}"
        )
    first = {one.name: one.files[0] for one in found}
    places = {name: file.parent if is_image(file) else file for name, file in first.items()}
    return {} if path in places.values() else places  # the folder itself is one of frames


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
        raise UserError("--split: expected no --predict, which measures nothing")
    out = config.out
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise UserError(f"--out: expected a file in a folder with write access, got {out}")
    accepted = (".json", ".csv") if config.predict is not None else (".json",)
    if out is not None and out.suffix.lower() not in accepted:
        raise UserError(f"--out: expected a file that ends in {' or '.join(accepted)}, got {out}")


def chosen_model(run: FinishedRun, flag: Classifier | None) -> str:
    """Return the folder of the classifier that ``--model``, or the run's argument, names.

    Raises :class:`UserError` if it is not finished, or no classifier.
    """
    name = flag or run.chosen or "finetune"
    finished = [name for name in get_args(Classifier) if run.finished(name)]
    if name in finished:
        return name
    if not finished:
        unlabelled = run.finished("pretrain") and not run.dataset.num_classes
        pretrains = unlabelled or run.config.stages.stage == "pretrain"
        way = "finetune it" if pretrains else "continue it"
        flags = "--stage finetune --init" if pretrains else "--resume"
        raise UserError(
            f"{run.folder}: expected a finetuned run; {way} with python -m ivcl_fast.train {flags} "
            f"{run.folder}" + (" --data KIND:DIR with classes" if unlabelled else "")
        )
    raise UserError(f"--model: expected one of {', '.join(finished)}, got {name} of {run.folder}")


def main() -> None:
    evaluate(parse(EvaluateConfig, "evaluate", __doc__))


if __name__ == "__main__":
    run_command(main)
