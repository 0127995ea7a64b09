"""``python -m ivcl_fast.probe RUN``: what can be read off a run's frozen slots.

Linear probes of CATER's frames: where the snitch is, also while it is hidden, whether it is hidden,
and what else is to be seen; from the run's models and from an untrained one.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .data import cater_frames
from .data.cater import Cater
from .data.sampling import frame_ids
from .errors import UserError, run_command
from .files import write_json
from .metrics import Score
from .model import IVCL
from .probes import PROBES, Frames, cater_truth, run_probe
from .reference import all_patches
from .run import Run
from .run_models import finetuned_backbone, open_run, untrained

BATCH = 50
RESULTS = "probes.json"
"""Name of the file in a run's folder that holds the scores."""
Encode = Callable[[Tensor], Tensor]
Scores = dict[str, dict[str, dict[str, Score]]]


@dataclass(frozen=True)
class ProbeConfig:
    """What to probe."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train, on CATER."""
    train_clips: int = 1000
    """Training clips that probes are fitted on, at most."""
    eval_clips: int = 600
    """Validation clips that they are scored on, at most."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        for name, least in (("train_clips", 5), ("eval_clips", 2)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')}: must be at least {least}")


def probe(config: ProbeConfig) -> Scores:
    """Print a table of all probes and keep the scores in the run's folder.

    Returns scores by probe, group of frames, and kind of slots.
    """
    run = open_run(config.run, config.device)
    if not isinstance(run.data.dataset, Cater):
        raise UserError(
            f"{config.run}: probes need CATER's scenes, this run is on another data set"
        )
    encoders = slot_encoders(run)
    train, features = encode(run, run.data.train_split, config.train_clips, encoders)
    test, test_features = encode(run, run.data.eval_split, config.eval_clips, encoders)
    both = {kind: (features[kind], test_features[kind]) for kind in encoders}
    scores = {name: run_probe(name, both, train, test) for name in PROBES}
    clips = [int(frames.clip.max()) + 1 for frames in (train, test)]
    print_scores(scores, list(encoders), clips)
    write_scores(run.folder / RESULTS, scores, clips)
    return scores


def slot_encoders(run: Run) -> dict[str, Encode]:
    """Ways to slots ``[B, T, S, D]``, by name.

    ``alone`` stops before the temporal transformer: each frame without memory of the others.
    """
    encoders: dict[str, Encode] = {"untrained": untrained(run).encode}
    if run.finished("pretrain"):
        pretrained = run.load_pretrained()
        if run.config.model.objective == "ivcl":
            encoders["pretrained, frame alone"] = frames_alone(pretrained)
        encoders["pretrained"] = pretrained.encode
    if run.finished("finetune") and run.config.model.readout != "cls":  # whose token encode lacks
        encoders["finetuned"] = finetuned_backbone(run).encode
    return encoders


def frames_alone(model: IVCL) -> Encode:
    """Slots of the image encoder alone."""

    def encode(rows: Tensor) -> Tensor:
        slots, _, _ = model.encoder(rows, all_patches(rows))
        return slots

    return encode


@torch.no_grad()
def encode(
    run: Run, split: str, count: int, encoders: dict[str, Encode]
) -> tuple[Frames, dict[str, Tensor]]:
    """Evenly spaced frames of the first ``count`` clips of a split, and their slots.

    The slots of M frames as float32 ``[M, S * D]``, by encoder.
    """
    clips = run.data.usable_clips(split)[:count]
    scenes = [run.data.scene(clip.name) for clip in clips]
    length = run.config.model.num_frames
    ids = [frame_ids(cater_frames.frame_count(scene), length).tolist() for scene in scenes]
    clips = [dataclasses.replace(c, frames=tuple(i)) for c, i in zip(clips, ids, strict=True)]
    parts: dict[str, list[Tensor]] = {kind: [] for kind in encoders}
    for start in range(0, len(clips), BATCH):
        rows = run.data.rows(clips[start : start + BATCH], length).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.amp):
            for kind, slots_of in encoders.items():
                parts[kind].append(slots_of(rows).flatten(0, 1).flatten(1).float())
    return cater_truth(scenes, ids), {kind: torch.cat(part) for kind, part in parts.items()}


def print_scores(scores: Scores, kinds: list[str], clips: list[int]) -> None:
    """The table on the terminal."""
    title = (
        f"linear probes of frozen slots, frames of {clips[0]} training and {clips[1]} validation "
        "clips, 95 % intervals in brackets"
    )
    drawn = Table("probe", "measure", "frames", "knowing nothing", *kinds, title=title)
    for name, groups in scores.items():
        for group, of_group in groups.items():
            first = next(iter(of_group.values()))
            drawn.add_row(
                name,
                PROBES[name].measure,
                group,
                first.format(first.chance),
                *(str(of_group[kind]) for kind in kinds),
            )
    Console(width=None if Console().is_terminal else 170).print(drawn)


def write_scores(path: Path, scores: Scores, clips: list[int]) -> None:
    """The scores as JSON: probe, group of frames, kind of slots."""
    plain = {
        name: {
            group: {kind: dataclasses.asdict(score) for kind, score in of_group.items()}
            for group, of_group in groups.items()
        }
        for name, groups in scores.items()
    }
    write_json(path, {"train_clips": clips[0], "eval_clips": clips[1], "scores": plain})


def read_scores(path: Path) -> Scores:
    """What :func:`write_scores` wrote."""
    plain = json.loads(path.read_text())["scores"]
    return {
        name: {
            group: {kind: Score(**score) for kind, score in of_group.items()}
            for group, of_group in groups.items()
        }
        for name, groups in plain.items()
    }


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    probe(tyro.cli(ProbeConfig, prog="python -m ivcl_fast.probe", description=__doc__))


if __name__ == "__main__":
    run_command(main)
