"""``python -m ivcl_fast.evaluate RUN``: measure a finished run again, or answer for one video."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import tyro

from ivcl_fast.analysis.finished_runs import DataFlags, open_run
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.clip import decode_clip, find_media
from ivcl_fast.data.datamodule import open_dataset
from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.errors import UserError
from ivcl_fast.files import write_json
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.models.reference import patchify
from ivcl_fast.report.run import Row, plain, print_rows
from ivcl_fast.training.run import Run

Classifier = Literal["finetune", "scratch", "last-frame"]
SHOWN_ANSWERS = 5


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train."""
    model: Classifier = "finetune"
    """Which of the run's classifiers: as finetuned, without pretraining, or of the last frame."""
    split: str | None = None
    """Clips to measure on; by default those that results are reported on (val for CATER, test for
    ACRE, validation for Something-Else)."""
    out: Path | None = None
    """Also write the scores, and every clip's label, answer and logits (one per class, which the
    file names), to this file, as JSON."""
    predict: Path | None = None
    """Answer for this one instead: a video file, or a folder with its frames as images in the order
    of their names; for ACRE a folder with six panels of context, then the query."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)


def evaluate(config: EvaluateConfig) -> None:
    """Print the scores of a run's classifier, chance beside each, or its answers for one file."""
    check_flags(config)
    run = open_run(config.run, config.device, config.where)
    if not run.finished(config.model):
        have = [name for name in get_args(Classifier) if run.finished(name)]
        raise UserError(
            f"--model {config.model}: {config.run} holds no such finished model; "
            f"it has {', '.join(have) or 'none'}"
        )
    if config.predict is not None:
        answer(run, load(run, config.model), config.predict)
        return
    splits = open_dataset(run.config.data, read_only=True).splits
    if config.split not in (None, *splits):
        raise UserError(f"--split: {config.split!r} is not one of {', '.join(splits)}")
    split = config.split or run.data.eval_split
    evaluation = run.evaluate(load(run, config.model), split)
    print_rows([Row(f"{config.model} on {split}", evaluation.scores)])
    if config.out is not None:
        data = run.config.data
        about = {"run": str(run.folder), "data": data.source, "task": data.task}
        about |= {"model": config.model, "split": split}
        found = {"scores": plain(evaluation.scores), "classes": run.classes.names}
        logits = [{"logits": row} for row in evaluation.logits.tolist()]
        clips = [a | b for a, b in zip(evaluation.by_clip(), logits, strict=True)]
        write_json(config.out, {**about, **found, "clips": clips})


def check_flags(config: EvaluateConfig) -> None:
    """Raises :class:`UserError` before any work if its result could not be kept."""
    if config.predict is not None:
        for flag, value in (("--out", config.out), ("--split", config.split)):
            if value is not None:
                raise UserError(f"{flag}: is not for --predict, which measures nothing")
    out = config.out
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise UserError(f"--out: {out} cannot be written; accepted: a file in a folder that exists")


def load(run: Run, name: Classifier) -> IVCLClassifier:
    """One of the run's classifiers."""
    return run.load_classifier(name, last_only=name == "last-frame")


def answer(run: Run, model: IVCLClassifier, path: Path) -> None:
    """Print the likeliest answers for a video file, or a folder of images."""
    cfg = model.cfg
    try:
        media = find_media(path, clip_frames(run.config.data.source))
        frames = decode_clip(media, cfg, run.config.data.decoder)
    except VideoError as error:
        raise UserError(f"--predict {path}: {error}") from None
    rows = patchify(frames, cfg.patch_size).unsqueeze(0).to(run.device)
    with torch.inference_mode(), torch.autocast(rows.device.type, torch.bfloat16, enabled=run.amp):
        logits = model(rows).float()[0]
    scores = logits.sigmoid() if run.classes.multi_label else logits.softmax(-1)
    for score, label in zip(*scores.topk(min(SHOWN_ANSWERS, len(scores))), strict=True):
        print(f"{score:6.1%}  {run.classes.names[int(label)]}")


def main() -> None:
    evaluate(parse(EvaluateConfig, "evaluate", __doc__))


if __name__ == "__main__":
    run_command(main)
