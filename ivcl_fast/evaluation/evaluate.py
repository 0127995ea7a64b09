"""Measuring a classifier: one pass over the clips, every score with chance and an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.formats import cater_labels
from ivcl_fast.data.formats.acre import QUERIES, TYPES, Acre, covariation
from ivcl_fast.data.loader import ClipLoader
from ivcl_fast.evaluation import metrics
from ivcl_fast.evaluation.metrics import Score

if TYPE_CHECKING:
    from ivcl_fast.data.datamodule import DataModule


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of clips."""

    scores: dict[str, dict[str, Score]]
    """By group of clips (``all``, ``visible``, ``hidden``) and metric."""
    logits: Tensor
    """float32 ``[V, C]``."""
    labels: Tensor
    """int64 ``[V]``, or multi-hot ``[V, C]``."""
    clips: list[Clip]
    """In the order of ``logits``."""
    hidden: Tensor | None = None
    """bool ``[V]``: which end with the snitch in a cone; None where nothing tells."""

    @property
    def names(self) -> list[str]:
        """The clips' names."""
        return [clip.name for clip in self.clips]

    @property
    def right(self) -> Tensor | None:
        """float32 ``[V]``: 1 where the answer, the likeliest class, is the label; 0 elsewhere.

        None of a multi-label task.
        """
        return None if self.labels.ndim > 1 else (self.logits.argmax(1) == self.labels).float()

    def by_clip(self) -> list[dict[str, Any]]:
        """Each clip's ``name``, ``video`` and ``label``, for ``clips.json``.

        Of a multi-label task the labels, in a list; else also the ``answer``, the likeliest class.
        ``group`` is there where ``hidden`` and ``visible`` ends are told apart.
        """
        found: list[dict[str, Any]] = []
        for i, (clip, label) in enumerate(zip(self.clips, self.labels, strict=True)):
            one: dict[str, Any] = {"name": clip.name, "video": clip.media}
            if label.ndim:
                one["label"] = label.nonzero()[:, 0].tolist()
            else:
                one |= {"label": int(label), "answer": int(self.logits[i].argmax())}
            if self.hidden is not None:
                one["group"] = "hidden" if self.hidden[i] else "visible"
            found.append(one)
        return found

    def curve(self) -> dict[str, float]:
        """Metrics as ``metrics.jsonl`` wants them: ``val_top1``, of a group ``val_top1_hidden``."""
        return {
            f"val_{name}" + ("" if group == "all" else f"_{group}"): score.value
            for group, scores in self.scores.items()
            for name, score in scores.items()
        }


@torch.inference_mode()
def predict(
    model: nn.Module, loader: ClipLoader, device: torch.device, amp: bool
) -> tuple[Tensor, ...]:
    """Logits, labels and clip ids of one pass over ``loader``, on the CPU, in its order."""
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    for batch in loader.epoch(0):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(*batch.to(device).inputs)
        parts.append((logits.float().cpu(), batch.labels, batch.clip_ids))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def evaluate(
    model: nn.Module,
    loader: ClipLoader,
    data: DataModule,
    split: str,
    device: torch.device,
    amp: bool,
) -> Evaluation:
    """Measure ``model`` on every clip of ``loader``, which is of ``split``."""
    logits, labels, clip_ids = predict(model, loader, device, amp)
    clips = [loader.clips[i] for i in clip_ids.tolist()]
    names = [clip.name for clip in clips]
    if data.multi_label:
        return Evaluation({"all": action_scores(logits, labels)}, logits, labels, clips)
    if isinstance(data.dataset, Acre):
        scores = blicket_scores(data.dataset, split, names, logits, labels)
        return Evaluation({"all": scores}, logits, labels, clips)
    if not data.localizes:
        return Evaluation({"all": class_scores(logits, labels)}, logits, labels, clips)
    ends = by_visibility(data, names)
    groups = {
        group: place_scores(logits[chosen], labels[chosen], data.grid)
        for group, chosen in ends.items()
        if chosen.any()
    }
    return Evaluation(groups, logits, labels, clips, ends.get("hidden"))


def frame_scores(
    model: nn.Module, loader: ClipLoader, device: torch.device, amp: bool
) -> dict[str, float]:
    """How well supervised pretraining has learnt the labels of frames, for ``metrics.jsonl``.

    ``val_frame_map``: mean average precision over all frames, in detection over all their patches;
    ``val_frame_map_chance``: of a constant score, the classes' prevalence.
    """
    logits, labels, _ = predict(model, loader, device, amp)
    flat = [x.flatten(0, -2).numpy() for x in (logits, labels)]
    prevalence = flat[1].mean(axis=0)
    return {
        "val_frame_map": metrics.mean_average_precision(*flat),
        "val_frame_map_chance": float(prevalence[prevalence > 0].mean()),
    }


def by_visibility(data: DataModule, names: list[str]) -> dict[str, Tensor]:
    """Which clips (bool ``[V]``) end with the snitch visible, hidden in a cone, and all.

    Where a scene is missing, all alone.
    """
    every = torch.ones(len(names), dtype=torch.bool)
    if not data.has_scenes(names):
        return {"all": every}
    hidden = torch.tensor([cater_labels.hidden_at_end(data.scene(n)) for n in names])
    return {"all": every, "visible": ~hidden, "hidden": hidden}


def blicket_scores(
    dataset: Acre, split: str, names: list[str], logits: Tensor, labels: Tensor
) -> dict[str, Score]:
    """ACRE's scores: per query, per problem and per question type."""
    queries = dataset.queries(split)
    asked = [queries[name] for name in names]
    problems = torch.tensor([query.problem for query in asked])
    return metrics.query_scores(logits, labels, problems, [q.type for q in asked], TYPES)


def counting_guess(
    dataset: Acre, split: str, names: list[str], labels: Tensor
) -> tuple[dict[str, dict[str, Score]], Tensor]:
    """The same of answers that take no reasoning, only counts (:func:`covariation`).

    Also which of them are right: float32 ``[V]``, 0 or 1.
    """
    queries, answers = dataset.queries(split), [covariation(p) for p in dataset.problems(split)]
    given = [answers[queries[n].problem][queries[n].panel - QUERIES.start] for n in names]
    answer = torch.tensor(given)
    guess = F.one_hot(answer, dataset.num_classes).float()
    scores = blicket_scores(dataset, split, names, guess, labels)
    return {"all": scores}, (answer == labels).float()


def class_scores(logits: Tensor, labels: Tensor) -> dict[str, Score]:
    """Top-1 and, if there are more classes, top-5; chance is a uniform guess."""
    classes = logits.shape[1]
    return {
        f"top{k}": Score.proportion(metrics.topk_correct(logits, labels, k), k / classes)
        for k in (1, 5)
        if k < classes
    }


def place_scores(logits: Tensor, labels: Tensor, grid: int) -> dict[str, Score]:
    """Top-1, top-5 and L1 of snitch localisation on a ``grid`` x ``grid`` floor."""
    chance = metrics.localization_chance(grid)
    scores = {
        f"top{k}": Score.proportion(metrics.topk_correct(logits, labels, k), chance[f"top{k}"])
        for k in (1, 5)
    }
    distance = metrics.grid_distance(logits, labels, grid)
    return scores | {"l1": Score.mean(distance, chance["l1"])}


def action_scores(logits: Tensor, targets: Tensor) -> dict[str, Score]:
    """Mean average precision of the action tasks."""
    return {"map": Score.mean_average_precision(logits, targets)}


def cone_guess(data: DataModule, names: list[str]) -> tuple[dict[str, dict[str, Score]], Tensor]:
    """Top-1 of the guess "under a visible cone", one of them at random, which needs no memory.

    Also what it is of, float32 ``[V]``: per clip the share of the visible cones that stand in the
    true cell. Raises :class:`UserError` where a scene is missing (``data.has_scenes``).
    """
    hits = []
    for name in names:
        scene = data.scene(name)
        cones = cater_labels.visible_cones_at_end(scene, data.grid)
        truth = cater_labels.localize_label(scene, data.grid)
        hits.append(cones.count(truth) / len(cones) if cones else 0.0)
    share = torch.tensor(hits)
    chance = metrics.localization_chance(data.grid)["top1"]
    scores = {
        group: {"top1": Score.mean(share[chosen], chance, percent=True)}
        for group, chosen in by_visibility(data, names).items()
        if chosen.any()
    }
    return scores, share
