"""Print the most likely answers of a finetuned model for a video.

    python examples/answer_for_a_video.py [MODEL [VIDEO]]

MODEL is the folder of a run of ivcl_fast.train or of its model, VIDEO a video file or a folder of
frames. By default it uses a packaged model and the sample video in the package.
"""

from __future__ import annotations

import sys

import torch

import ivcl_fast
from ivcl_fast.errors import UserError


def answer(name: str = "ivcl_fast/tiny-localize", video: str = "ivcl_fast/sample.avi") -> None:
    """Print the three most likely answers."""
    model = ivcl_fast.IVCLClassifier.from_pretrained(name)
    training = model.training_record or {}
    # Sample and crop frames as in training.
    names = {"frame stride": "frame_stride", "seconds per clip": "clip_seconds", "crop": "crop"}
    how = {names[key]: value for key, value in training.items() if key in names}
    clip = ivcl_fast.load_clip(video, model.cfg, **how)  # uint8 [1, T, 3, H, W]
    with torch.inference_mode():
        logits = model(clip)[0]  # [classes]
    is_multi_label = training.get("target") == "classes"
    probabilities = logits.sigmoid() if is_multi_label else logits.softmax(-1)
    print(f"{video}:")
    for probability, label in zip(*probabilities.topk(min(3, len(probabilities))), strict=True):
        print(f"{probability:7.1%}  {model.class_names[label]}")


if __name__ == "__main__":
    try:
        answer(*sys.argv[1:])
    except UserError as error:  # no such model or video
        print(error, file=sys.stderr)
        sys.exit(2)
