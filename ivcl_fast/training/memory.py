"""Memory of a training step, counted on fake tensors.

The code of a run (model, mixed precision, clipping, optimisers) runs on fake tensors, without a
GPU, and each storage is tracked until it is freed. Library memory is not counted: the CUDA context,
workspaces of matrix products, and fragmentation.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.frame_labels import CLASSES
from ivcl_fast.kernels._op import as_on_a_gpu
from ivcl_fast.kernels.linear import cast_together, weights_to_cast
from ivcl_fast.models import flops
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, SlotAutoencoder
from ivcl_fast.training.classes import pretraining_model
from ivcl_fast.training.optim import Schedule, make_optimizers
from ivcl_fast.training.settings import TrainConfig

FINETUNED_CLASSES = 36
"""Number of classes of the finetuned model; their memory is negligible."""
SAMPLES = 16, 256
"""Batch sizes from which :meth:`FakeStep.most_clips` interpolates and extrapolates."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step takes on one device."""

    weights: int
    gradients: int
    optimizer: int
    """The optimisers' state."""
    casts: int
    """bfloat16 copies of the weights on a GPU; on a CPU they are part of ``activations``."""
    activations: int
    """Tensors kept for the backward pass, including the clips' pixels."""
    peak: int
    """Peak memory, including temporary tensors."""


class LiveMemory(TorchDispatchMode):
    """Tracks the storages of operations: ``live`` bytes now, ``peak`` bytes at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._follow(x.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def forget(_: Any) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


class FakeStep:
    """A training step on fake tensors; see :func:`fake_step`."""

    def __init__(self, live: LiveMemory, model: Any, schedule: Schedule, on_gpu: bool) -> None:
        self._live, self._model, self._schedule, self._on_gpu = live, model, schedule, on_gpu
        self._parameters = [*model.parameters()]
        self.weights = live.live
        """Bytes of the model's parameters."""
        self._optimizers = make_optimizers(model, schedule, capturable=on_gpu)
        before = live.live
        self._set_gradients()
        self._gradients = live.live - before
        for _ in range(2):  # the first update creates the state
            live.peak = live.live
            nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
            for optimizer in self._optimizers:
                optimizer.step()
        self._update_peak = live.peak
        self._model.zero_grad()
        self._state = live.live - self.weights

    def memory(self, clips: int, bf16: bool = True, keep_gradients: bool = False) -> StepMemory:
        """Return the memory of a step on ``clips`` clips, in mixed precision or float32.

        ``keep_gradients``: never free the gradients, as for replicas on several ranks.
        """
        live, cfg = self._live, self._model.cfg
        part = -(-clips // self._schedule.grad_accum_steps)
        shape = part, cfg.num_frames, cfg.num_patches, cfg.patch_dim
        if keep_gradients:
            self._set_gradients()
        start = live.peak = live.live
        casts = cast_together(weights_to_cast(self._model), torch.bfloat16)
        with casts if bf16 and self._on_gpu else nullcontext():
            copies = live.live - start
            for _ in range(min(2, self._schedule.grad_accum_steps)):  # the others equal the second
                before = live.live
                rows = torch.zeros(shape, dtype=torch.uint8)
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = loss_of(self._model, rows)
                activations = live.live - before
                loss.backward()
                del loss
        peak = max(live.peak, self._update_peak)
        self._model.zero_grad()
        return StepMemory(self.weights, self._gradients, self._state, copies, activations, peak)

    def most_clips(
        self, limits: Sequence[int], bf16: bool = True, keep_gradients: bool = False
    ) -> list[int]:
        """Return the largest batch for each limit in bytes, a multiple of the micro-batches."""
        (few, many), parts = SAMPLES, self._schedule.grad_accum_steps
        low, high = (self.memory(parts * n, bf16, keep_gradients).peak for n in SAMPLES)
        each = (high - low) / (many - few)
        return [
            parts * max(0, int(few + (limit - low) / each)) if limit >= self._update_peak else 0
            for limit in limits
        ]

    def _set_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = torch.empty_like(parameter)


@contextmanager
def fake_step(
    cfg: IVCLConfig,
    num_classes: int | None = None,
    *,
    schedule: Schedule | None = None,
    grad_checkpoint: bool = False,
    on_gpu: bool = True,
) -> Iterator[FakeStep]:
    """Create a training step on fake tensors, for use inside the ``with`` block.

    ``num_classes``: of the classifier to finetune; None to pretrain. ``on_gpu``: False for this
    machine's CPU.
    """
    with as_on_a_gpu() if on_gpu else nullcontext(), FakeTensorMode(), LiveMemory() as live:
        model: Any
        model = pretraining_model(cfg) if num_classes is None else IVCLClassifier(cfg, num_classes)
        if grad_checkpoint:
            model.checkpoint_blocks()
        yield FakeStep(live, model, schedule or Schedule(1, optimizer="muon"), on_gpu)


def fake_stages(config: TrainConfig, on_gpu: bool = True) -> Iterator[tuple[str, FakeStep]]:
    """Yield the name and the step of each stage of a run."""
    optim = config.optim
    options: dict[str, Any] = dict(
        schedule=Schedule(1, optimizer=optim.optimizer, grad_accum_steps=optim.grad_accum_steps),
        grad_checkpoint=config.speed.grad_checkpoint,
        on_gpu=on_gpu,
    )
    for stage in config.stages.clips:
        classes = FINETUNED_CLASSES if stage == "finetune" else None
        with fake_step(config.model, classes, **options) as step:
            yield stage, step


def stage_flops(model: IVCLConfig, classes: int | None, frames: float | None = None) -> int:
    """Return the FLOPs per clip of pretraining or, with ``classes``, of finetuning."""
    if classes is None and model.supervised:
        return flops.supervised_training(model, len(CLASSES[model.objective]))
    return flops.training(model, classes, frames)


def loss_of(model: Any, rows: Tensor) -> Tensor:
    """Return a loss of the model, with zeros for labels if it needs any."""
    if isinstance(model, IVCL):
        return model(rows, seed=torch.zeros(len(rows), dtype=torch.int64)).loss
    if isinstance(model, SlotAutoencoder):
        return model(rows).loss
    logits = model(rows).float()
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
