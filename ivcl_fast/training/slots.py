"""Precomputed slots of all clips, for finetuning with a frozen encoder."""

from __future__ import annotations

import torch

from ivcl_fast.data.loader import ClipLoader
from ivcl_fast.data.slots import Slots
from ivcl_fast.evaluation.evaluate import outputs
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.progress import Bar


def encode(model: IVCLClassifier, loader: ClipLoader, device: torch.device, amp: bool) -> Slots:
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
