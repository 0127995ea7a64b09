"""Precomputed slots of all clips, for finetuning with a frozen encoder."""

from __future__ import annotations

from itertools import compress

import torch

from ivcl_fast.data.loader import ClipLoader
from ivcl_fast.data.slots import Slots
from ivcl_fast.distributed import group as distributed
from ivcl_fast.evaluation.evaluate import outputs
from ivcl_fast.models.ivcl import IVCLClassifier
from ivcl_fast.progress import Bar


def encode(model: IVCLClassifier, loader: ClipLoader, device: torch.device, amp: bool) -> Slots:
    """Compute the slots of all clips of ``loader`` and keep them in CPU memory.

    Every rank encodes all clips. Clips that some rank could not decode are left out on all ranks,
    so that all draw batches from the same clips.

    ``amp``: run under bfloat16 autocast; slots then take ``2 * T * S * D`` bytes per clip,
    otherwise twice that.
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
    values = values[: len(names)]
    clips = [clip.name for clip in loader.clips]
    usable = distributed.true_on_all_ranks([name in names for name in clips])
    return Slots(values, {name: names[name] for name in compress(clips, usable)})
