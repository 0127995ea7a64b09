"""Print the most likely answers of a finetuned model for a video.

    python examples/answer_for_a_video.py RUN VIDEO

RUN is the folder of a run of ivcl_fast.train, VIDEO a video file or a folder of frames. Without
arguments, the script makes a short run in a temporary folder (too short to learn) and uses one of
its videos.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import ivcl_fast
from ivcl_fast.errors import UserError
from ivcl_fast.training.settings import load_settings


def answer(run: Path, video: Path) -> None:
    """Print the three most likely answers."""
    model = ivcl_fast.IVCLClassifier.from_pretrained(run / "finetune")
    classes = json.loads((run / "answers.json").read_text())
    data = load_settings(run).data  # sample and crop frames as in training
    how = {name: getattr(data, name) for name in ("frame_stride", "clip_seconds", "crop")}
    clip = ivcl_fast.load_clip(video, model.cfg, **how)  # uint8 [1, T, 3, H, W]
    with torch.inference_mode():
        logits = model(clip)[0]  # [classes]
    probabilities = logits.sigmoid() if classes["target"] == "classes" else logits.softmax(-1)
    print(f"{video.name}:")
    for probability, label in zip(*probabilities.topk(min(3, len(probabilities))), strict=True):
        print(f"{probability:7.1%}  {classes['names'][label]}")


def short_run(folder: Path) -> tuple[Path, Path]:
    """Make a run in this folder; return it and one of its videos."""
    flags = ["--out", folder, "--name", "run", "--data-dir", folder / "data"]
    flags += ["--quick", "--train-videos=16", "--val-videos=8", "--no-pictures", "--keep-videos"]
    subprocess.run([sys.executable, "-m", "ivcl_fast.train", *map(str, flags)], check=True)
    return folder / "run", min(folder.glob("data/*/videos/*.avi"))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        try:
            answer(Path(sys.argv[1]), Path(sys.argv[2]))
        except UserError as error:  # no such run or video
            print(error, file=sys.stderr)
            sys.exit(2)
    elif len(sys.argv) == 1:
        with tempfile.TemporaryDirectory() as folder:
            answer(*short_run(Path(folder)))
    else:
        sys.exit(__doc__)
