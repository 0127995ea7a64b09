"""The GPU that decodes, and how much it can do at once."""

from __future__ import annotations

import torch

NVDECS = 7
"""Video decoders of an H100; each DALI pipeline uses one, so 7 pipelines use all."""


def decoding_gpu(device: torch.device | None) -> int | None:
    """Return the index of the GPU on which a run on ``device`` decodes, None without a GPU.

    Processes and threads that decode are told the index: they have a current GPU of their own.
    """
    if not torch.cuda.is_available():
        return None
    if device is not None and device.type == "cuda" and device.index is not None:
        return device.index
    return torch.cuda.current_device()
