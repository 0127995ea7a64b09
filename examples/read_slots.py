"""Read the slots of a video: their values, how they change, and where they attend.

    python examples/read_slots.py [MODEL [VIDEO]]

MODEL is a folder of save_pretrained such as runs/RUN/pretrain, VIDEO a video file or a folder of
frames. By default it uses a packaged model and a moving square. Writes slots.npz to the working
folder: slots [T, S, D] and attention [T, S, grid, grid].
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

import ivcl_fast
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.errors import UserError


def moving_square(cfg: ivcl_fast.IVCLConfig) -> Tensor:
    """Return a video of a white square that moves from left to right: uint8 [1, T, 3, H, W]."""
    size = cfg.image_size
    video = torch.full((1, cfg.num_frames, 3, size, size), 40, dtype=torch.uint8)
    for frame in range(cfg.num_frames):
        left = frame * (size - size // 4) // max(1, cfg.num_frames - 1)
        video[0, frame, :, size // 3 : size // 3 + size // 4, left : left + size // 4] = 255
    return video


def read(model: ivcl_fast.IVCL, video: Tensor) -> None:
    """Print a line per slot, and write all values to slots.npz."""
    cfg = model.cfg
    with torch.inference_mode():
        slots = model.encode(video)[0]  # [T, S, D], after the temporal transformer
    attention = slot_attention(model, video)[0].unflatten(-1, (cfg.grid, cfg.grid))  # [T, S, g, g]
    for slot in range(cfg.num_slots):
        values = torch.nn.functional.normalize(slots[:, slot], dim=-1)  # [T, D]
        alike = (values[1:] * values[:-1]).sum(-1).mean()
        row, column = divmod(int(attention[-1, slot].argmax()), cfg.grid)
        print(f"slot {slot}: cosine of successive frames {alike:.3f}, looks at patch "
              f"({row}, {column}) of the last frame most")  # fmt: skip
    np.savez("slots.npz", slots=slots.numpy(), attention=attention.numpy())


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "ivcl_fast/tiny-pretrained"
    given = len(sys.argv) > 2
    try:
        model = ivcl_fast.IVCL.from_pretrained(name)
        video = ivcl_fast.load_clip(sys.argv[2], model.cfg) if given else moving_square(model.cfg)
    except UserError as error:  # no such model or video
        print(error, file=sys.stderr)
        sys.exit(2)
    read(model, video)
