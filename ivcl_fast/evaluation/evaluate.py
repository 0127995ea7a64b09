"""Evaluate a classifier in one pass over the clips; every score has chance and an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ivcl_fast.data.dataset import Clip, target_of
from ivcl_fast.data.formats.acre import TYPES, Acre
from ivcl_fast.data.formats.cater_labels import hidden_at_end
from ivcl_fast.data.loader import Batch, ClipLoader
from ivcl_fast.data.slots import Slots
from ivcl_fast.evaluation import metrics
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.evaluation.targets import TARGETS, top_scores
from ivcl_fast.progress import Bar

if TYPE_CHECKING:
    from ivcl_fast.data.datamodule import DataModule

BATCH = 48
"""Clips per batch in validation and evaluation."""
GroupScores = dict[str, dict[str, Score]]
"""Scores by group of clips (``all``, ``visible``, ``hidden``) and metric."""


def scores_as_json(scores: GroupScores) -> dict[str, dict[str, dict[str, Any]]]:
    """Convert scores to JSON values, by group of clips and metric."""
    return {
        group: {name: asdict(score) for name, score in by_metric.items()}
        for group, by_metric in scores.items()
    }


@dataclass(frozen=True)
class Result:
    """A model or baseline in a run's table of results."""

    title: str
    scores: GroupScores
    correct: Mapping[str, float] | None = None
    """By clip: 1 if the answer is correct, else 0; for a random guess, the probability of a correct
    answer. None if the labels are not single classes."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of clips."""

    scores: GroupScores
    logits: Tensor
    """Outputs of the head, float32 ``[V, C]``."""
    labels: Tensor
    """int64 ``[V]``, or float32 ``[V, C]``; see :mod:`~ivcl_fast.evaluation.targets`."""
    clips: list[Clip]
    """The clips, in the order of ``logits``."""
    hidden: Tensor | None = None
    """bool ``[V]``: which clips end with the snitch inside a cone; None if unknown."""
    target: str = "class"
    """Kind of label."""

    @property
    def names(self) -> list[str]:
        """Names of the clips."""
        return [clip.name for clip in self.clips]

    def of_each_clip(self, values: Tensor) -> dict[str, float]:
        """Return ``values``, ``[V]``, by clip."""
        return dict(zip(self.names, values.tolist(), strict=True))

    def result(self, title: str) -> Result:
        """Return the result for a run's table."""
        if self.target != "class":
            return Result(title, self.scores)
        correct = (self.logits.argmax(1) == self.labels).float()
        return Result(title, self.scores, self.of_each_clip(correct))

    def by_clip(self) -> list[dict[str, Any]]:
        """Return each clip's ``name``, ``video``, ``label`` and ``answer`` for ``clips.json``.

        ``answer`` is the most likely class, or the predicted numbers. In a multi-label task,
        ``label`` is a list and ``answer`` is missing. ``group`` (``hidden`` or ``visible``) is
        added if known.
        """
        found: list[dict[str, Any]] = []
        for i, (clip, label) in enumerate(zip(self.clips, self.labels, strict=True)):
            one: dict[str, Any] = {"name": clip.name, "video": clip.media}
            if self.target == "classes":
                one["label"] = label.nonzero()[:, 0].tolist()
            elif self.target == "class":
                one |= {"label": int(label), "answer": int(self.logits[i].argmax())}
            else:
                answer = TARGETS[self.target].answers(self.logits[i])
                one |= {"label": label.tolist(), "answer": answer.tolist()}
            if self.hidden is not None:
                one["group"] = "hidden" if self.hidden[i] else "visible"
            found.append(one)
        return found

    def curve(self) -> dict[str, float]:
        """Return values for ``metrics.jsonl``, such as ``val_top1``, or ``val_top1_hidden`` for a
        group."""
        return {
            f"val_{name}" + ("" if group == "all" else f"_{group}"): score.value
            for group, scores in self.scores.items()
            for name, score in scores.items()
        }


def predict(
    model: nn.Module, loaders: Sequence[ClipLoader], device: torch.device, amp: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, labels and clip ids of the clips of ``loaders``, in order, on the CPU.

    Several loaders read different frames of the same videos: their logits are averaged, and videos
    that one of them could not read are left out. ``amp``: compute in bfloat16 under autocast.
    Logits are float32.
    """
    parts = [
        (logits.float().cpu(), batch.labels, batch.clip_ids)
        for loader in loaders
        for batch, logits in outputs(model, model, loader, device, amp)
    ]
    logits, labels, clips = (torch.cat(part) for part in zip(*parts, strict=True))
    ids, place, counts = clips.unique(return_inverse=True, return_counts=True)
    total = logits.new_zeros(len(ids), *logits.shape[1:]).index_add_(0, place, logits)
    label = labels.new_empty(len(ids), *labels.shape[1:]).index_copy_(0, place, labels)
    read = counts == len(loaders)
    return total[read] / len(loaders), label[read], ids[read]


@torch.inference_mode()
def outputs(
    model: nn.Module,
    compute: Callable[..., Tensor],
    loader: ClipLoader,
    device: torch.device,
    amp: bool,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch of one pass over ``loader`` with the output of ``compute``.

    ``compute``: ``model`` or one of its methods. Compiled parts run eagerly, because compiling for
    the few shapes of an evaluation takes longer than it saves. ``amp``: use bfloat16 autocast.
    """
    model.eval()
    compiled = any(part._compiled_call_impl is not None for part in model.modules())
    # Setting the stance imports the compiler, which takes a second.
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        for batch in loader.epoch(0):
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                found = compute(*batch.to(device).inputs)
            yield batch, found


def encode(model: Any, loader: ClipLoader, device: torch.device, amp: bool) -> Slots:
    """Compute the slots of all clips of ``loader`` on every rank, and keep them in CPU memory.

    Clips that cannot be decoded are left out.
    """
    values, names = torch.empty(0), dict[str, int]()
    with Bar("encoding", len(loader.clips), "clips") as bar:
        for batch, slots in outputs(model, model.slots, loader, device, amp):
            if not names:  # preallocated: concatenating parts would need twice the memory
                values = torch.empty(len(loader.clips), *slots.shape[1:], dtype=slots.dtype)
            values[len(names) : len(names) + len(slots)] = slots
            for clip in batch.clip_ids.tolist():
                names[loader.clips[clip].name] = len(names)
            bar(len(names))
    return Slots(values[: len(names)], names)


def evaluate(
    model: Any,
    data: DataModule,
    split: str,
    device: torch.device,
    amp: bool,
    clips_per_video: int = 1,
    **options: Any,
) -> Evaluation:
    """Evaluate a classifier on every clip of ``split`` of ``data``.

    The logits of several clips of a video are averaged. ``options``: see
    :meth:`DataModule.loader`.
    """
    loaders = data.eval_loaders(
        split, clips_per_video, batch_size=BATCH, num_frames=model.cfg.num_frames, **options
    )
    logits, labels, clip_ids = predict(model, loaders, device, amp)
    clips = [loaders[0].clips[i] for i in clip_ids.tolist()]
    names = [clip.name for clip in clips]
    if isinstance(data.dataset, Acre):
        scores = query_scores(data.dataset, split, names, logits, labels)
        return Evaluation({"all": scores}, logits, labels, clips)
    target, hidden = target_of(data.dataset), None
    if data.asks_for_snitch and data.has_scenes(names):
        hidden = torch.tensor([hidden_at_end(data.scene(name)) for name in names])
    score = partial(place_scores, grid=data.grid) if data.localizes else TARGETS[target].scores
    found = {
        group: score(logits[chosen], labels[chosen])
        for group, chosen in group_masks(len(clips), hidden).items()
    }
    return Evaluation(found, logits, labels, clips, hidden, target)


def frame_scores(
    model: nn.Module, loader: ClipLoader, device: torch.device, amp: bool
) -> dict[str, float]:
    """Evaluate supervised pretraining on the labels of frames, for ``metrics.jsonl``.

    ``val_frame_map``: mean average precision over all frames, or over all patches (detection) or
    slots (objects). ``val_frame_map_chance``: that of a constant score, the prevalence of the
    classes.
    """
    logits, labels, _ = predict(model, [loader], device, amp)
    flat = [x.flatten(0, -2).numpy() for x in (logits, labels)]
    prevalence = flat[1].mean(axis=0)
    return {
        "val_frame_map": metrics.mean_average_precision(*flat),
        "val_frame_map_chance": float(prevalence[prevalence > 0].mean()),
    }


def group_masks(count: int, hidden: Tensor | None) -> dict[str, Tensor]:
    """Return the groups of ``count`` clips, bool ``[V]`` each: ``all``, ``visible``, ``hidden``.

    ``hidden``: bool ``[V]``, see :class:`Evaluation`; without it there is only ``all``. Empty
    groups are left out.
    """
    groups = {"all": torch.ones(count, dtype=torch.bool)}
    if hidden is not None:
        groups |= {"visible": ~hidden, "hidden": hidden}
    return {group: chosen for group, chosen in groups.items() if chosen.any()}


def query_scores(
    dataset: Acre, split: str, names: list[str], logits: Tensor, labels: Tensor
) -> dict[str, Score]:
    """Return ACRE's scores: per query, per problem and per question type."""
    queries = dataset.queries(split)
    asked = [queries[name] for name in names]
    problems = torch.tensor([query.problem for query in asked])
    return metrics.query_scores(logits, labels, problems, [q.type for q in asked], TYPES)


def place_scores(logits: Tensor, labels: Tensor, grid: int) -> dict[str, Score]:
    """Return top-1, top-5 and L1 of snitch localisation on a ``grid`` x ``grid`` floor."""
    distance = metrics.grid_distance(logits, labels, grid)
    l1 = Score.mean(distance, metrics.chance_distance(grid), most=2 * (grid - 1))
    return top_scores(logits, labels) | {"l1": l1}
