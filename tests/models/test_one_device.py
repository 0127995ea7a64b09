"""What a training step computes stays on the model's device, which is never waited for.

On a GPU a tensor of the CPU among the others is an error, or a copy that waits as reading a value
does; a CUDA graph can record neither. Here ``meta`` is that device: its tensors have no values to
read, and the ops choose what they would on a GPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ivcl_fast import IVCLClassifier
from ivcl_fast.kernels._op import as_on_a_gpu
from ivcl_fast.training.classes import pretraining_model
from ivcl_fast.training.loop import clip_seeds
from tests.support.small_models import config

CLIPS = 4


class OneDevice(TorchDispatchMode):
    """Refuses operations with tensors of another device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        assert {x.device.type for x in tensors} <= {"meta"}, op
        return out


def zeros(*shape, dtype=torch.int64):
    return torch.zeros(shape, dtype=dtype, device="meta")


def video_rows(cfg):
    return zeros(CLIPS, cfg.num_frames, cfg.num_patches, cfg.patch_dim, dtype=torch.uint8)


def differentiate(model, loss):
    """Compute a loss and its gradients on the device alone."""
    with as_on_a_gpu(), OneDevice():
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"objective": "mae"}, {"objective": "joint"}, {"context_tokens": "slots+patches"},
        {"norm_pix": False}, {"decoder_slots": False}, {"attention": "eager"},
        {"low_precision_residual": True}, {"objective": "detection"},
        {"objective": "slot_attention"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("checkpointed", [False, True])
def test_pretraining(fields, checkpointed):
    cfg = config(**fields)
    model = pretraining_model(cfg).to("meta")
    if checkpointed:
        model.checkpoint_blocks()
    rows, step, ids = video_rows(cfg), zeros(), zeros(CLIPS)

    def loss():
        if cfg.supervised:
            return model(rows).float().square().mean()
        if cfg.objective == "slot_attention":
            return model(rows).loss
        return model(rows, seed=clip_seeds(0, step, ids)).loss

    differentiate(model, loss)


@pytest.mark.parametrize("objective", ["ivcl", "joint", "slot_attention"])
@pytest.mark.parametrize("every_frame", [False, True])
def test_finetuning(objective, every_frame):
    cfg = config(objective=objective)
    model = IVCLClassifier(cfg, 7).to("meta")
    rows = video_rows(cfg)
    labels = zeros(CLIPS * cfg.num_frames if every_frame else CLIPS)

    def loss():
        return F.cross_entropy(model(rows, every_frame=every_frame).float().view(-1, 7), labels)

    differentiate(model, loss)


def test_clips_that_share_frames_and_slots():
    cfg = config()
    model = IVCLClassifier(cfg, 7).to("meta")
    frame_index = zeros(CLIPS, 3, cfg.num_frames)
    differentiate(model, lambda: model(video_rows(cfg), frame_index).sum())
    slots = zeros(CLIPS, cfg.num_frames, cfg.num_slots, cfg.embed_dim, dtype=torch.float32)
    differentiate(model, lambda: model(slots).sum())
