"""What a classifier learns about a clip: the loss, scores and answers of each kind of label.

A data set selects one by its attribute ``target`` (see :func:`~ivcl_fast.data.dataset.target_of`).
Shapes: B clips or V clips, C outputs of the head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.evaluation import metrics
from ivcl_fast.evaluation.metrics import Score


class Target(ABC):
    """A kind of label. Add a subclass's instance to :data:`TARGETS` to train on another kind.

    Example::

        class Median(Numbers):
            def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
                return F.l1_loss(outputs, labels)


        TARGETS["median"] = Median()  # for data sets with target = "median"
    """

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss, a scalar; ``outputs``: float32 ``[B, C]``."""

    @abstractmethod
    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Score]:
        """Return the scores of ``[V, C]`` outputs by metric, the most important one first."""

    @abstractmethod
    def answers(self, outputs: Tensor) -> Tensor:
        """Convert outputs, ``[..., C]``, to answers for a reader, such as probabilities."""


class OneClass(Target):
    """One class per clip: cross-entropy and top-k accuracy. Labels: int64 ``[B]``.

    Logits and labels may also be those of every frame, ``[B, T, C]`` and ``[B, T]``.
    """

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, -2), labels.flatten())

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Score]:
        return top_scores(outputs, labels) | {"class_mean": Score.class_mean(outputs, labels)}

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)


class SeveralClasses(Target):
    """Several classes per clip: binary cross-entropy and mAP. Labels: multi-hot ``[B, C]``."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, labels)

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Score]:
        return {"map": Score.mean_average_precision(outputs, labels)}

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()


class Numbers(Target):
    """C numbers per clip: mean squared error and mean distance. Labels: float32 ``[B, C]``.

    Labels should be of the order of 1, because they are not rescaled.
    """

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs, labels)

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, Score]:
        """Return the mean Euclidean distance; chance is that of the labels from their mean."""
        centre = (labels - labels.mean(0)).norm(dim=1).mean().item()
        return {"distance": Score.mean((outputs - labels).norm(dim=1), centre)}

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs


TARGETS: dict[str, Target] = {
    "class": OneClass(),
    "classes": SeveralClasses(),
    "numbers": Numbers(),
}
"""Kinds of labels by name."""


def top_scores(logits: Tensor, labels: Tensor) -> dict[str, Score]:
    """Return top-1 and, if there are more classes, top-5; chance is a uniform guess."""
    classes = logits.shape[1]
    return {
        f"top{k}": Score.proportion(metrics.topk_correct(logits, labels, k), k / classes)
        for k in (1, 5)
        if k < classes
    }
