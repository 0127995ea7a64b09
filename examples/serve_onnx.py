"""Answer for a video with ONNX Runtime, without PyTorch or this package.

    python -m ivcl_fast.export RUN
    python examples/serve_onnx.py RUN/export/classifier.onnx VIDEO

The first command writes the model and a JSON file with its sizes and classes. This script does not
support runs with --frame-stride, --clip-seconds or --crop, or on ACRE.
"""

import json
import sys
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
import onnxruntime


def stop(reason: object) -> NoReturn:
    """Exit with one line on stderr."""
    print(reason, file=sys.stderr)
    sys.exit(2)


if len(sys.argv) != 3:
    stop("usage: python examples/serve_onnx.py RUN/export/classifier.onnx VIDEO")
model, video = sys.argv[1:]
try:
    about = json.loads(Path(model).with_suffix(".json").read_text())
    last = sum(1 for _ in av.open(video).decode(video=0)) - 1
except (OSError, ValueError) as error:  # no such file, or not a model's
    stop(error)
if "classes" not in about:
    stop(f"{model}: expected classifier.onnx, got a model without classes")
if (about["input"]["frames"], about["input"]["crop"]) != ("even", "none"):
    stop(f"{model}: expected frames 'even' and crop 'none', got {about['input']}")
_, length, _, size, _ = about["input"]["shape"]
chosen = [last]  # a single frame: the last one
if length > 1:
    chosen = [(2 * i * last + length - 1) // (2 * (length - 1)) for i in range(length)]
options = {"width": size, "height": size, "format": "rgb24", "interpolation": "BILINEAR"}
frames = {
    number: np.rot90(frame.reformat(**options).to_ndarray(), frame.rotation // 90)
    for number, frame in enumerate(av.open(video).decode(video=0))
    if number in chosen
}
clip = np.stack([frames[number] for number in chosen])
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"video": clip.transpose(0, 3, 1, 2)[None]})[0]
scores = np.exp(logits - logits.max())
scores = 1 / (1 + np.exp(-logits)) if about["target"] == "classes" else scores / scores.sum()
for number in scores.argsort()[::-1][:3]:
    print(f"{scores[number]:6.1%}  {about['classes'][number]}")
