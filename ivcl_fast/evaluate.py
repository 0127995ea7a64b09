"""``python -m ivcl_fast.evaluate RUN``: measure a finished run again, or answer for one video."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from .data.dataset import Media, VideoError
from .data.decode import choose_decoder, make_decoder
from .data.patches import patchify
from .data.probe import probe
from .data.sampling import frame_ids
from .errors import UserError, run_command
from .report import Row, print_rows
from .run import Run
from .settings import load_settings

SHOWN_ANSWERS = 5


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train."""
    model: str = "finetune"
    """Which of the run's classifiers: finetune, scratch or last-frame."""
    predict: Path | None = None
    """Answer for this one video file instead."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def evaluate(config: EvaluateConfig) -> None:
    """Print the scores of a run's classifier, chance beside each, or its answers for one file."""
    run = Run(load_settings(config.run, device=config.device))
    if not run.finished(config.model):
        have = [n for n in ("finetune", "scratch", "last-frame") if run.finished(n)]
        raise UserError(
            f"--model {config.model}: {config.run} holds no such finished model; "
            f"it has {', '.join(have) or 'none'}"
        )
    model = run.load_classifier(config.model, last_only=config.model == "last-frame")
    if config.predict is None:
        print_rows([Row(config.model, run.evaluate(model).scores)])
        return
    cfg = model.cfg
    media = Media(config.predict.stem, (config.predict,))
    try:
        info = probe(media)
        decoder = make_decoder(choose_decoder(info, run.config.decoder)[0], cfg.image_size)
        frames = decoder.decode(media, frame_ids(info.frames, cfg.num_frames))
    except VideoError as error:
        raise UserError(f"--predict {config.predict}: {error}") from None
    rows = patchify(frames, cfg.patch_size).unsqueeze(0).to(run.device)
    with torch.inference_mode():
        logits = model(rows).float()[0]
    scores = logits.sigmoid() if run.task.multi_label else logits.softmax(-1)
    for score, label in zip(*scores.topk(min(SHOWN_ANSWERS, len(scores))), strict=True):
        print(f"{score:6.1%}  {run.task.names[int(label)]}")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    evaluate(tyro.cli(EvaluateConfig, prog="python -m ivcl_fast.evaluate", description=__doc__))


if __name__ == "__main__":
    run_command(main)
