"""The slots of all clips, computed once, for finetuning with a frozen encoder."""

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
    """Compute the slots of all clips that ``loader`` reads; they stay in the CPU's memory.

    Each rank does so by itself. Clips that one of them could not decode are left out on all, since
    batches are drawn from the same clips on all ranks.

    ``amp``: in bfloat16 under autocast. They take ``2 * T * S * D`` bytes per clip, without it
    twice as many.
    """
    values, names = torch.empty(0), dict[str, int]()
    with Bar("encoding", len(loader.clips), "clips") as bar:
        for batch, slots in outputs(model, model.slots, loader, device, amp):
            if not names:  # at once, since lists of parts would take the memory twice
                values = torch.empty(len(loader.clips), *slots.shape[1:], dtype=slots.dtype)
            values[len(names) : len(names) + len(slots)] = slots
            for clip in batch.clip_ids.tolist():
                names[loader.clips[clip].name] = len(names)
            bar(len(names))
    values = values[: len(names)]
    clips = [clip.name for clip in loader.clips]
    usable = distributed.true_on_all_ranks([name in names for name in clips])
    return Slots(values, {name: names[name] for name in compress(clips, usable)})
