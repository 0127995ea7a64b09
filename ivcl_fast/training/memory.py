"""Peak memory of a training step, counted on fake tensors.

The code of a run (model, mixed precision, clipping, optimisers) runs on fake tensors, without a
GPU, and each storage is tracked until it is freed. Library memory is not counted: the CUDA context,
workspaces of matrix products, and fragmentation.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ivcl_fast.config import IVCLConfig
from ivcl_fast.kernels._op import as_on_a_gpu
from ivcl_fast.kernels.linear import cast_together, weights_to_cast
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, SlotAutoencoder
from ivcl_fast.training.classes import pretraining_model
from ivcl_fast.training.optim import Schedule, make_optimizers


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


def step_peaks(
    cfg: IVCLConfig,
    num_classes: int | None,
    batches: Sequence[int],
    schedule: Schedule,
    *,
    grad_checkpoint: bool = False,
    on_gpu: bool = True,
    bf16: bool = True,
    keep_gradients: bool = False,
) -> list[int]:
    """Return the peak memory in bytes of a step on each number of clips.

    ``num_classes``: of the classifier to finetune; None to pretrain. ``on_gpu``: False for this
    machine's CPU. ``keep_gradients``: never free the gradients, as for replicas on several ranks.
    """
    with as_on_a_gpu() if on_gpu else nullcontext(), FakeTensorMode(), LiveMemory() as live:
        model: Any
        model = pretraining_model(cfg) if num_classes is None else IVCLClassifier(cfg, num_classes)
        if grad_checkpoint:
            model.checkpoint_blocks()
        parameters = [*model.parameters()]
        optimizers = make_optimizers(model, schedule, capturable=on_gpu)

        def set_gradients() -> None:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)

        set_gradients()
        for _ in range(2):  # the first update creates the state
            live.peak = live.live
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            for optimizer in optimizers:
                optimizer.step()
        update_peak = live.peak
        model.zero_grad()
        peaks = []
        for clips in batches:
            if keep_gradients:
                set_gradients()
            live.peak = live.live
            part = -(-clips // schedule.grad_accum_steps)
            shape = part, cfg.num_frames, cfg.num_patches, cfg.patch_dim
            casts = cast_together(weights_to_cast(model), torch.bfloat16)
            with casts if bf16 and on_gpu else nullcontext():
                for _ in range(min(2, schedule.grad_accum_steps)):  # the others equal the second
                    rows = torch.zeros(shape, dtype=torch.uint8)
                    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                        loss = loss_of(model, rows)
                    loss.backward()
                    del loss
            peaks.append(max(live.peak, update_peak))
            model.zero_grad()
        return peaks


def loss_of(model: Any, rows: Tensor) -> Tensor:
    """Return a loss of the model, with zeros for labels if it needs any."""
    if isinstance(model, IVCL):
        return model(rows, seed=torch.zeros(len(rows), dtype=torch.int64)).loss
    if isinstance(model, SlotAutoencoder):
        return model(rows).loss
    logits = model(rows).float()
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
