"""Pack a finished run's model into the package: ``python -m docs.pretrained RUN NAME``.

That is the classifier, or the pretrained model of a run that only pretrained, as
``ivcl_fast/NAME``, in place of an earlier one: weights in float16, config and checksums, with a
classifier's scores by these weights on the run's own clips (``--data``, if they have moved). The
answer to a fixed video is kept for a test. Then ``python -m docs.tables`` writes the table of
models again.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.export import random_videos
from ivcl_fast.files import write_text
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier
from ivcl_fast.models.weights import MODEL, PACKAGED
from ivcl_fast.report.tables import METRIC_NAMES

ANSWERS = Path(__file__).parents[1] / "tests" / "models" / "packaged_answers.json"
"""File with the :func:`answer` of each packaged model, a line each."""


def pack(folder: Path, name: str, data: str | None) -> None:
    """Write the model of the run in ``folder`` into the package."""
    run = FinishedRun.open(folder, "cpu", data)
    run.amp = False
    stage = "finetune" if run.finished("finetune") else "pretrain"
    model = run.load(stage)
    rounded = copy.deepcopy(model).half().float()
    record: dict[str, Any] = dict(model.training_record or {})
    record = {key: value for key, value in record.items() if not key.startswith("scores on ")}
    record["weights"] = "float16"
    if stage == "finetune":
        record["clips of pretraining"] = run.config.stages.pretrain_clips
        split = run.data.eval_split
        found = run.evaluate(rounded, split)
        record[f"scores on {split}, with 95 % intervals"] = {
            f"{METRIC_NAMES[metric]}, {group}": str(score)
            for group, by_metric in found.scores.items()
            for metric, score in by_metric.items()
        }
    out = PACKAGED / name
    shutil.rmtree(out, ignore_errors=True)
    rounded.half().save_pretrained(out, training=record)
    (out / "README.md").unlink()  # docs/zoo.md says the same
    (out / MODEL).chmod(0o644)  # for whoever installs the package
    answers = json.loads(ANSWERS.read_text())
    answers[name] = [round(x, 4) for x in answer(type(model).from_pretrained(out))]
    lines = (f" {json.dumps(key)}: {json.dumps(answers[key])}" for key in sorted(answers))
    write_text(ANSWERS, "{\n" + ",\n".join(lines) + "\n}\n")


def answer(model: IVCL | IVCLClassifier) -> list[float]:
    """Return the logits for a fixed video; of a pretrained model, a slot of its last frame."""
    video = random_videos(model, 1)
    with torch.inference_mode():
        if isinstance(model, IVCLClassifier):
            return model(video)[0].tolist()
        return model.encode(video)[0, -1, 0].tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m docs.pretrained", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="name in the package")
    parser.add_argument("--data", help="the run's data if it has moved, such as cater:DIR")
    flags = parser.parse_args()
    pack(flags.run, flags.name, flags.data)
