"""Train a temporal transformer to remember objects, from custom slots of one object each.

    python examples/objects_as_slots.py [VIDEOS CLIPS [SEED [last]]]

A classifier accepts slots instead of videos. Here each slot encodes the appearance and place of the
snitch or a cone in a CATER-like scene, and is zero while the object is inside a cone. Labels are
the snitch's cells in all frames or, with "last", in the last frame only. The default is too short
to learn; docs/learnt.md has the results of longer training.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import ivcl_fast
from ivcl_fast.data.synthetic.cater.video import OBJECT_COLORS, draw_video
from ivcl_fast.training.hardware import has_fast_bf16
from ivcl_fast.training.optim import Schedule, make_optimizers, set_lr

BF16 = has_fast_bf16(torch.device("cpu"))
CFG = ivcl_fast.IVCLConfig(num_slots=7, embed_dim=64, num_heads=2, depth=1, temporal_depth=4)


def states_of(index: int) -> np.ndarray:
    """Return a video, [301, 7, 14]: x, y, height, visibility and appearance of each object."""
    video, states = draw_video(0, index), np.zeros((301, 7, 14), np.float16)
    motion, cones = video.motion, [i for i, one in enumerate(video.things) if one.shape == "cone"]
    for slot, i in enumerate([0, *cones][:7]):  # the snitch is the first object
        thing = video.things[i]
        states[:, slot, :3], states[:, slot, 3] = motion.locations[:, i], ~motion.covered[:, i]
        states[:, slot, 4:] = thing.radius, slot == 0, *(thing.color == c for c in OBJECT_COLORS)
    return states


def clips(states: Tensor, vary: bool = False) -> tuple[Tensor, Tensor]:
    """Return slots [B, T, 7, 64] of videos, and the snitch's cell in every frame, [B, T]."""
    shift = torch.randint(-9, 10, (len(states), 1)) if vary else 0
    frames = (torch.linspace(0, 300, CFG.num_frames).round().long() + shift).clamp(0, 300)
    x = states[torch.arange(len(states))[:, None], frames].float()
    xy = x[..., :2].clamp(-2.999, 2.999)
    if vary:  # mirror and rotate the floor
        xy = xy * (2 * torch.randint(2, (len(x), 1, 1, 2)) - 1)
        xy = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, xy.flip(-1), xy)
    column, row = (xy[:, :, 0] + 3).long().unbind(-1)
    near = (1 - (xy[..., None] - torch.linspace(-3, 3, 16)).abs() / 0.4).clamp(min=0).flatten(-2)
    return F.pad(torch.cat([near, x[..., 2:]], -1), (0, 20)) * x[..., 3:4], row * 6 + column


def train(videos: int = 240, count: int = 960, seed: int = 0, last: bool = False) -> None:
    """Train on all but a fifth of the videos; print top-1 on the rest."""
    torch.manual_seed(seed)
    states = torch.from_numpy(np.stack([states_of(index) for index in range(videos)]))
    held_out, states = states[: videos // 5], states[videos // 5 :]
    (slots, cell), hidden = clips(held_out), held_out[:, 300, 0, 3] == 0
    model = ivcl_fast.IVCLClassifier(CFG, 36)
    schedule = Schedule(count, lr=3e-3, batch_size=32, optimizer="muon")
    optimizers = make_optimizers(model, schedule)
    for step in range(schedule.steps):
        set_lr(optimizers, schedule.lr_at(step))
        x, y = clips(states[torch.randint(len(states), (schedule.batch_size,))], vary=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            logits = model(x, every_frame=True)
        logits, y = (logits[:, -1:], y[:, -1:]) if last else (logits, y)
        F.cross_entropy(logits.float().flatten(0, 1), y.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % max(1, schedule.steps // 20) == 0:
            with torch.inference_mode():
                right = (model(slots).argmax(-1) == cell[:, -1]).float()
            seen = schedule.batch_size * (step + 1)
            print(f"{seen:,} clips: top-1 {right[~hidden].mean():.1%} of the visible, "
                  f"{right[hidden].mean():.1%} of the hidden snitches", flush=True)  # fmt: skip


if __name__ == "__main__":
    train(*map(int, sys.argv[1:4]), last=sys.argv[4:] == ["last"])
