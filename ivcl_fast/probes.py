"""``python -m ivcl_fast.probes RUN``: what can be read off a run's frozen slots, frame by frame.

Linear probes of CATER's scenes: where the snitch is and which things are there, also while they are
inside cones (object permanence); from slots before and after the temporal transformer, of the run's
models and of an untrained one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ivcl_fast.analysis.cater_probes import PROBES, Frames, Scores, frames_of, run_probes
from ivcl_fast.analysis.finished_runs import (
    DataFlags,
    Models,
    about,
    models_of,
    open_run,
    untrained,
)
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater import TASKS
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import all_patches
from ivcl_fast.progress import Bar
from ivcl_fast.report import probes as probe_report
from ivcl_fast.training.run import Run

BATCH = 50
"""Clips encoded at a time."""
TIME, FRAME_ALONE, ALL_FRAMES = "time alone", "frame alone", "all frames"
"""Kinds of features: without slots; those of a frame that sees no other; those that see all."""
LEAST_CLIPS = 10
"""Fewer leave nothing to hold out, or to draw an interval from."""


@dataclass(frozen=True)
class ProbesConfig:
    """What to probe."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train, on CATER."""
    train_clips: int = 2000
    """Training clips that probes are fitted on, at most."""
    eval_clips: int = 600
    """Validation clips that they are scored on, at most."""
    checkpoint: Path | None = None
    """Weights to probe instead of the run's own: a folder such as RUN/pretrain/checkpoints/step-*,
    or a .safetensors file; taken as pretrained or finetuned, whichever they are."""
    out: Path | None = None
    """Where to write; by default the folder probes in the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Annotated[DataFlags, tyro.conf.arg(name="")] = field(default_factory=DataFlags)


def probe_run(config: ProbesConfig) -> Scores:
    """Write and print a table of all probes, a figure, and the scores as JSON."""
    for flag, count in (("train", config.train_clips), ("eval", config.eval_clips)):
        if count < LEAST_CLIPS:
            raise UserError(f"--{flag}-clips: {count} is not a number of at least {LEAST_CLIPS}")
    run = open_run(config.run, config.device, config.where)
    if run.config.data.task not in TASKS:
        raise UserError(
            f"{config.run}: probes need CATER's scenes, and its task is {run.config.data.task}; "
            f"accepted: a run of {', '.join(TASKS)}"
        )
    models: Models = {"untrained": untrained(run), **models_of(run, config.checkpoint)}
    train, train_features = encode(run, run.data.train_split, config.train_clips, models)
    test, test_features = encode(run, run.data.eval_split, config.eval_clips, models)
    features = {kind: (train_features[kind], test_features[kind]) for kind in train_features}
    with Bar("fitting", len(PROBES), "probes") as bar:
        scores = run_probes(train, test, features, bar)
    out = config.out or run.folder / "probes"
    clips = len(train.clips.unique()), len(test.clips.unique())
    about_run = about(run, models, config.checkpoint)
    probe_report.write(out, run.folder.name, about_run, scores, clips)
    return scores


@torch.no_grad()
def encode(run: Run, split: str, count: int, models: Models) -> tuple[Frames, dict[str, Tensor]]:
    """Evenly spaced frames of the first ``count`` clips of a split, and features of them.

    Features of M frames, float32 ``[M, T + S * D]``: which of the clip's T frames it is, and its
    slots side by side, by kind as :func:`slots_of`. Cones fill up in the course of a video: what
    the time tells is so known to all, and to ``time alone``, which sees nothing else.
    """
    clips = run.data.usable_clips(split)[:count]
    scenes = [run.data.scene(clip.name) for clip in clips]
    length = run.config.model.num_frames
    ids = [frame_ids(cater_frames.frame_count(scene), length).tolist() for scene in scenes]
    clips = [dataclasses.replace(c, frames=tuple(i)) for c, i in zip(clips, ids, strict=True)]
    time = torch.eye(length, device=run.device)
    parts: dict[str, list[Tensor]] = {TIME: []}
    with Bar(f"slots of {split}", len(clips), "clips") as bar:
        for start in range(0, len(clips), BATCH):
            some = clips[start : start + BATCH]
            rows = run.data.rows(some, length).to(run.device)
            if len(rows) < len(some):  # streamed, not stored
                raise UserError(
                    f"{run.data.dataset.root}: a video of {split} can no longer be read"
                )
            now = time.repeat(len(rows), 1)
            parts[TIME].append(now)
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.amp):
                for name, model in models.items():
                    for kind, slots in slots_of(model, rows).items():
                        flat = slots.flatten(0, 1).flatten(1).float()
                        parts.setdefault(f"{name}, {kind}", []).append(torch.cat([now, flat], 1))
            bar(min(start + BATCH, len(clips)), len(clips))
    return frames_of(scenes, ids), {kind: torch.cat(part) for kind, part in parts.items()}


def slots_of(model: Any, rows: Tensor) -> dict[str, Tensor]:
    """Slots ``[B, T, S, D]`` of patch rows: of each frame alone, and with the others in mind.

    The first come from the image encoder, the second from the temporal transformer; a model may
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
