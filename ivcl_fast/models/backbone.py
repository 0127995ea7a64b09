"""Starting one model from another: the parts that pretraining hands on.

A *source* is a folder of ``save_pretrained``, a run's folder (for its pretrained model), a
``.safetensors`` file, a state dict, or ``timm:NAME`` or ``timm:PATH``
(:mod:`~ivcl_fast.models.timm_weights`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.errors import UserError
from ivcl_fast.models import timm_weights
from ivcl_fast.models.weights import read_weights, weights_file

log = logging.getLogger(__name__)


def check_source(source: str) -> None:
    """Raises :class:`UserError` for a source that cannot be had, before any work."""
    if timm_weights.is_timm(source):
        timm_weights.check(source)
    else:
        weights_file(source)


def load_backbone(model: Any, source: str | os.PathLike | Mapping[str, Tensor]) -> list[str]:
    """Start a model's encoder and temporal transformer from other weights.

    Takes every key of ``source`` that the model has under ``encoder.`` or ``temporal.``; positions
    and times of another length are interpolated, with a log line. Returns the keys taken. Raises
    ``UserError`` naming the first key whose shape does not fit.
    """
    own = model.state_dict()
    if timm_weights.is_timm(source):
        weights = timm_weights.encoder_weights(source, model)
    else:
        weights = read_weights(source)
    taken: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not key.startswith(("encoder.", "temporal.")) or key not in own:
            continue
        if value.shape != own[key].shape:
            value = resize_embedding(key, value, own[key].shape)
        taken[key] = value
    if not any(key.startswith("encoder.") for key in taken):
        raise UserError("checkpoint: holds no encoder.* weights of an IV-CL model")
    model.load_state_dict(taken, strict=False)
    return sorted(taken)


def resize_embedding(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Interpolate learned positions ``[1, N, D]`` or times ``[T, D]`` to another length.

    Raises ``UserError`` for any other tensor, and for another width.
    """
    is_grid, is_time = key.endswith("pos_embed"), key.endswith("time_embed")
    if not (is_grid or is_time) or value.shape[-1] != shape[-1]:
        raise UserError(
            f"checkpoint: {key} has shape {list(value.shape)}, the model needs {list(shape)}; "
            "use the preset and sizes the checkpoint was trained with"
        )
    if is_time and shape[0] == 1:  # a single frame is the last one
        log.info("%s: the last of %d taken", key, len(value))
        return value[-1:]
    log.info("%s: interpolated from %d to %d", key, value.shape[-2], shape[-2])
    if is_time:
        x = F.interpolate(value.T[None], shape[0], mode="linear", align_corners=True)
        return x[0].T.contiguous()
    old, new = round(value.shape[1] ** 0.5), round(shape[1] ** 0.5)
    x = value.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    x = F.interpolate(x, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return x.flatten(2).transpose(1, 2).contiguous()
