"""Baselines without memory or reasoning, to which a run is compared.

Contains guesses that need no training, oracle rules, and the titles of all baselines in tables. The
last-frame model is trained by ``ivcl_fast.train``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ivcl_fast.data.formats.acre import QUERIES, Acre, covariation
from ivcl_fast.data.formats.cater_frames import frame_count, visible_cones
from ivcl_fast.data.formats.cater_labels import localize_label
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
    return guess_cells(data, evaluation, num_frames)


def guess_probability(cones: Sequence[int], cell: int) -> float:
    """Return the probability that a visible cone, chosen at random, stands in ``cell``.

    ``cones``: the cell of each; the result is 0 if there are none.
    """
    return cones.count(cell) / len(cones) if cones else 0.0


def guess_cells(data: DataModule, evaluation: Evaluation, num_frames: int) -> list[Result]:
    """Score two baselines of a localisation task: the cone heuristic and the oracle tracker.

    The cone heuristic guesses that the snitch is under a random visible cone. The tracker applies
    rules to the ground-truth objects of ``num_frames`` frames (see
    :func:`~ivcl_fast.evaluation.tracker.track_snitch`).
    """
    correct: dict[str, list[float]] = {CONE: [], TRACKER: []}
    for name in evaluation.names:
        scene = data.scene(name)
        cell = localize_label(scene, data.grid)
        frames = frame_ids(frame_count(scene), num_frames).tolist()
        cones = visible_cones(scene, frame_count(scene) - 1, data.grid)
        correct[CONE].append(guess_probability(cones, cell))
        correct[TRACKER].append(float(track_snitch(scene, frames, data.grid) == cell))
    results = []
    for title, of_clips in correct.items():
        values = torch.tensor(of_clips)
        scores = {
            group: {"top1": Score.mean(values[chosen], 1 / data.num_classes, percent=True)}
            for group, chosen in group_masks(len(values), evaluation.hidden).items()
        }
        results.append(Result(title, scores, evaluation.of_each_clip(values)))
    return results


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
