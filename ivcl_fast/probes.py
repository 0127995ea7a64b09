"""``python -m ivcl_fast.probes RUN``: what linear probes predict from a run's frozen slots.

In each frame of CATER: where the snitch is and which shapes and colors the scene holds, also while
they are inside cones (object permanence); from slots before and after the temporal transformer, of
the run's models and of an untrained one. After slot attention on synthetic videos also how well the
segments that slots draw are the objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ivcl_fast.analysis.cater_probes import PROBES, Frames, Scores, frames_of, run_probes
from ivcl_fast.analysis.finished_runs import DataFlags, FinishedRun, Models
from ivcl_fast.analysis.sample import Sample
from ivcl_fast.analysis.segments import score_segments
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.formats.cater import TASKS
from ivcl_fast.errors import UserError, require_at_least
from ivcl_fast.models.reference import all_patches
from ivcl_fast.progress import Bar
from ivcl_fast.report import probes as probe_report

TIME, FRAME_ALONE, ALL_FRAMES = "time alone", "frame alone", "all frames"
"""Names of features: no slots; slots of the frame by itself; slots that depend on all frames."""
LEAST_CLIPS = 10
"""With fewer there is nothing to hold out, and no interval."""


@dataclass(frozen=True)
class ProbesConfig:
    """Which run to probe, and with how many clips."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or of a model, a packaged model (ivcl_fast/tiny-localize), or OWNER/NAME on
    the Hugging Face hub."""
    train_clips: int = 2000
    """Training clips that probes are fitted on, at most; time grows with their number."""
    eval_clips: int = 600
    """Clips of the evaluation split that probes are scored on, at most."""
    checkpoint: Path | None = None
    """Weights to probe instead of the run's own: a folder such as RUN/pretrain/checkpoints/step-*,
    or a .safetensors file; they replace the pretrained or the finetuned model."""
    out: Path | None = None
    """Folder to write to; by default probes in the run's folder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)


def probe_run(config: ProbesConfig) -> Scores:
    """Write and print tables of all probes, a figure, and the scores as JSON; return the scores."""
    require_at_least(config, LEAST_CLIPS, "train_clips", "eval_clips")
    run = FinishedRun.open(config.run, config.device, config.where)
    if run.config.data.task not in TASKS:
        raise UserError(
            f"{config.run}: expected a run of CATER ({', '.join(TASKS)}), whose scenes are read, "
            f"got one of {run.config.data.task}"
        )
    models: Models = {"untrained": run.untrained(), **run.models(config.checkpoint)}
    train, train_features = encode(run, run.data.train_split, config.train_clips, models)
    test, test_features = encode(run, run.data.eval_split, config.eval_clips, models)
    features = {name: (train_features[name], test_features[name]) for name in train_features}
    with Bar("fitting", len(PROBES), "probes") as bar:
        scores = run_probes(train, test, features, bar)
    clips = len(train.clips.unique()), len(test.clips.unique())
    about = run.describe(models, config.checkpoint)
    out = config.out or run.folder / "probes"
    segments = score_segments(run, config.eval_clips, models)
    probe_report.write(out, run.folder.name, about, scores, clips, segments)
    return scores


@torch.no_grad()
def encode(
    run: FinishedRun, split: str, count: int, models: Models
) -> tuple[Frames, dict[str, Tensor]]:
    """Return evenly spaced frames of the first ``count`` clips of a split, and their features.

    Features of M frames, float32 ``[M, T + S * D]`` by name (see :func:`slots_of`): which of the
    clip's T frames it is, then its slots side by side. Cones fill up in the course of a video, so
    the time alone tells something; the features ``time alone`` hold nothing else.
    """
    sample = Sample.of(run, split, count)
    time = torch.eye(run.config.model.num_frames, device=run.device)
    parts: dict[str, list[Tensor]] = {TIME: []}
    for rows in sample.batches(run, f"slots of {split}"):
        now = time.repeat(len(rows), 1)
        parts[TIME].append(now)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.amp):
            for name, model in models.items():
                for sees, slots in slots_of(model, rows).items():
                    flat = slots.flatten(0, 1).flatten(1).float()
                    parts.setdefault(f"{name}, {sees}", []).append(torch.cat([now, flat], 1))
    frames = frames_of(sample.scenes, sample.ids)
    return frames, {name: torch.cat(part) for name, part in parts.items()}


def slots_of(model: Any, rows: Tensor) -> dict[str, Tensor]:
    """Return slots ``[B, T, S, D]`` of patch rows, by what they depend on.

    ``frame alone``: of the image encoder. ``all frames``: of the temporal transformer. A model may
    lack either (a joint encoder, an image MAE).
    """
    cls_token = getattr(model, "cls_token", None)
    slots, _, _ = model.encoder(rows, all_patches(rows), cls_token)
    if model.cfg.objective == "joint":
        return {ALL_FRAMES: slots}
    found = {FRAME_ALONE: slots}
    if hasattr(model, "temporal"):
        _, found[ALL_FRAMES] = model.temporal(cls_token, slots + model.temporal.time_embed[:, None])
    return found


def main() -> None:
    probe_run(parse(ProbesConfig, "probes", __doc__))


if __name__ == "__main__":
    run_command(main)
