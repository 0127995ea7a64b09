"""``python -m ivcl_fast.probes RUN``: score linear probes of a run's frozen slots.

In each frame of CATER, the probes predict the cell of the snitch, also inside a cone (object
permanence). They read slots before and after the temporal transformer, of the run's models and of
an untrained one. On synthetic videos, the segments of slots are also compared with the objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.analysis.linear_probes import Frames, Scores, frames_of, run_probes
from ivcl_fast.analysis.segments import Sample, score_segments
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.formats.cater import TASKS
from ivcl_fast.errors import UserError, require_at_least
from ivcl_fast.evaluation.baselines import CONE
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.files import write_json, write_text
from ivcl_fast.models.reference import all_patches
from ivcl_fast.progress import Bar
from ivcl_fast.report.tables import Table

TIME, FRAME_ALONE, ALL_FRAMES = "time alone", "frame alone", "all frames"
"""Names of features: no slots; slots of single frames; slots that depend on all frames."""
LEAST_CLIPS = 10
"""Minimum number of clips, for a held-out part and intervals."""
ABOUT = (
    "Besides the slots, every probe reads the number of the frame in its clip; *time alone* reads "
    "nothing else. *Frame alone*: slots of the image encoder, which sees no other frame; *all "
    "frames*: slots of the temporal transformer. Frames are *hidden* if the snitch is inside a "
    f"cone. *{CONE.capitalize()}*: guess the cell of a random visible cone. The finetuned model "
    "was trained on the clips that probes are fitted on, so its scores may be too low compared "
    "with the pretrained model's."
)
ABOUT_SEGMENTS = (
    "Segments are the pixels in which a slot, or the background, has the largest share; for models "
    "that do not decode slots, the patches to which each slot attends most. *FG-ARI*: adjusted "
    "Rand index over the pixels of objects; *ARI*: over all pixels; *mBO*: intersection over union "
    "of each object with its best segment; *video*: all frames as one picture. "
    "*Re-identification*: occlusions after which an object is in the same slot as before, by "
    "length in frames of CATER's timeline of 301; chance is a random slot. *Hidden positions*: the "
    "slot that last had an object goes on drawing while the object is hidden, and the box of what "
    "it draws is compared with the object's true box: *mAP* at overlaps of 0.1 to 0.3, and the "
    "*distance* of the centres in widths of the picture. *Held*: the segments of each frame are "
    "matched to memories of earlier objects by place, colour and size, without learning; with true "
    "segments, that is an upper bound."
)


@dataclass(frozen=True)
class ProbesConfig:
    """Run to probe, and numbers of clips."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run or of a model, a packaged model (ivcl_fast/tiny-localize), or OWNER/NAME on
    the Hugging Face hub."""
    train_clips: int = 2000
    """Maximum number of training clips to fit probes on; the time grows with it."""
    eval_clips: int = 600
    """Maximum number of evaluation clips to score probes on."""
    out: Path | None = None
    """Folder to write to; by default probes in the run's folder."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: str | None = None
    """The run's data if it has moved, or other data of the same kind, such as cater:DIR."""


def probe_run(config: ProbesConfig) -> Scores:
    """Print the tables of all probes, and write them and the scores as JSON; return the scores."""
    require_at_least(config, LEAST_CLIPS, "train_clips", "eval_clips")
    run = FinishedRun.open(config.run, config.device, config.data)
    if run.config.data.task not in TASKS:
        raise UserError(
            f"{config.run}: expected a run of CATER ({', '.join(TASKS)}), whose scenes are read, "
            f"got one of {run.config.data.task}"
        )
    models: Models = {"untrained": run.untrained(), **run.models()}
    train, train_features = encode(run, run.data.train_split, config.train_clips, models)
    test, test_features = encode(run, run.data.eval_split, config.eval_clips, models)
    features = {name: (train_features[name], test_features[name]) for name in train_features}
    with Bar("fitting", len(features), "probes") as bar:
        scores = run_probes(train, test, features, bar)
    clips = len(train.clips.unique()), len(test.clips.unique())
    about = f"{run.describe()} Models: {' and '.join(models)}."
    segments = score_segments(run, config.eval_clips, models)
    tables = {f"{name} (top-1)": probe_table(scores[name]) for name in scores}
    tables |= {name: score_table("model", rows) for name, rows in segments.items()}
    for title, table in tables.items():
        table.print(f"{title} on {clips[1]} clips, 95 % intervals in brackets")
    out = config.out or run.folder / "probes"
    out.mkdir(parents=True, exist_ok=True)
    saved: dict[str, Any] = {"about": about, "train_clips": clips[0], "eval_clips": clips[1]}
    if segments:
        saved["segments"] = {table: scores_as_json(of) for table, of in segments.items()}
    saved["scores"] = {name: scores_as_json(groups) for name, groups in scores.items()}
    write_json(out / "probes.json", saved)
    parts = [
        f"# Linear probes of the slots of {run.folder.name}",
        f"Linear probes of frozen slots, fitted on frames of {clips[0]} training clips and scored "
        f"on those of {clips[1]} validation clips; 95 % intervals in brackets (whole clips are "
        f"drawn). {ABOUT}",
        *(part for title, table in tables.items() for part in (f"## {title}", str(table))),
        *([ABOUT_SEGMENTS] if segments else []),
        about,
    ]
    write_text(out / "probes.md", "\n\n".join(parts) + "\n")
    print(f"report: {out / 'probes.md'}")
    return scores


def probe_table(groups: dict[str, dict[str, Score]]) -> Table:
    """Return a table of one probe: a row per feature, a column per group of frames, chance last."""
    rows: dict[str, dict[str, Any]] = {}
    for group, scores in groups.items():
        for name, score in scores.items():
            rows.setdefault(name, {})[f"frames: {group}"] = score
    any_score = {group: next(iter(scores.values())) for group, scores in groups.items()}
    rows["chance"] = {f"frames: {group}": s.format(s.chance) for group, s in any_score.items()}
    return score_table("features", rows)


def score_table(first_column: str, rows: dict[str, dict[str, Any]]) -> Table:
    """Return a table of scores by row and column, without empty columns."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    cells = [[name, *(str(row.get(c, "")) for c in columns)] for name, row in rows.items()]
    return Table([first_column, *columns], cells)


@torch.no_grad()
def encode(
    run: FinishedRun, split: str, count: int, models: Models
) -> tuple[Frames, dict[str, Tensor]]:
    """Return evenly spaced frames of the first ``count`` clips of a split, and their features.

    Features by name (see :func:`slots_of`), float32 ``[M, T + S * D]`` for M frames: a one-hot
    frame number and the frame's slots. ``time alone`` has only the frame number, which is
    informative because cones fill up in the course of a video.
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
    """Return slots ``[B, T, S, D]`` of patch rows, by the frames that they depend on.

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
