"""Baselines without memory or reasoning, to which a run is compared.

Contains guesses that need no training, oracle rules, and the titles of all baselines in tables. The
last-frame model is trained by ``ivcl_fast.train``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ivcl_fast.data.formats.acre import QUERIES, Acre, covariation
from ivcl_fast.data.formats.cater_frames import frame_count
from ivcl_fast.data.formats.cater_labels import Scene, localize_label, visible_cones_at_end
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.evaluation.evaluate import Evaluation, Result, group_masks, query_scores
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.evaluation.tracker import track_snitch

if TYPE_CHECKING:
    from ivcl_fast.data.datamodule import DataModule

FROM_SCRATCH = "from scratch"
LAST_FRAME = "last frame only"
CONE = "cone heuristic"
TRACKER = "oracle tracker"
COUNTING = "counting heuristic"


def untrained_baselines(
    data: DataModule, split: str, evaluation: Evaluation, num_frames: int
) -> list[Result]:
    """Score the guesses and rules that apply to the task, on the clips of ``evaluation``.

    ``num_frames``: frames of each clip that the tracker sees.
    """
    if isinstance(data.dataset, Acre):
        return [counting_guess(data.dataset, split, evaluation)]
    if not data.localizes or evaluation.hidden is None:
        return []
    return [cone_guess(data, evaluation), tracker(data, evaluation, num_frames)]


def guess_probability(cones: Sequence[int], cell: int) -> float:
    """Return the probability that a visible cone, chosen at random, stands in ``cell``.

    ``cones``: the cell of each; the result is 0 if there are none.
    """
    return cones.count(cell) / len(cones) if cones else 0.0


def cone_guess(data: DataModule, evaluation: Evaluation) -> Result:
    """Score the guess that the snitch is under a randomly chosen visible cone.

    ``evaluation``: of a localisation task. Raises :class:`UserError` if a scene is missing
    (``data.has_scenes``).
    """

    def hit(scene: Scene, cell: int) -> float:
        return guess_probability(visible_cones_at_end(scene, data.grid), cell)

    return _guesses(CONE, hit, data, evaluation)


def tracker(data: DataModule, evaluation: Evaluation, num_frames: int) -> Result:
    """Score oracle rules on the ground-truth objects of ``num_frames`` frames of each clip.

    The rules of :func:`~ivcl_fast.evaluation.tracker.track_snitch` use only visible objects and
    memory. ``evaluation``: of a localisation task. Raises :class:`UserError` if a scene is missing
    (``data.has_scenes``).
    """

    def hit(scene: Scene, cell: int) -> float:
        frames = frame_ids(frame_count(scene), num_frames).tolist()
        return float(track_snitch(scene, frames, data.grid) == cell)

    return _guesses(TRACKER, hit, data, evaluation)


def _guesses(
    title: str, hit: Callable[[Scene, int], float], data: DataModule, evaluation: Evaluation
) -> Result:
    """Return the result of a guess; ``hit``: the probability that it is the true cell."""
    scenes = map(data.scene, evaluation.names)
    correct = torch.tensor([hit(scene, localize_label(scene, data.grid)) for scene in scenes])
    scores = {
        group: {"top1": Score.mean(correct[chosen], 1 / data.num_classes, percent=True)}
        for group, chosen in group_masks(len(correct), evaluation.hidden).items()
    }
    return Result(title, scores, evaluation.of_each_clip(correct))


def counting_guess(dataset: Acre, split: str, evaluation: Evaluation) -> Result:
    """Score answers to ACRE's queries that only count how often the machine lit up.

    The counts are those of :func:`~ivcl_fast.data.formats.acre.covariation`. ``evaluation``: of
    ``split``.
    """
    names, labels = evaluation.names, evaluation.labels
    queries, answers = dataset.queries(split), [covariation(p) for p in dataset.problems(split)]
    given = [answers[queries[n].problem][queries[n].panel - QUERIES.start] for n in names]
    answer = torch.tensor(given)
    logits = F.one_hot(answer, dataset.num_classes).float()
    scores = query_scores(dataset, split, names, logits, labels)
    correct = evaluation.of_each_clip((answer == labels).float())
    return Result(COUNTING, {"all": scores}, correct)
