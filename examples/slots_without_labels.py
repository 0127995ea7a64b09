"""Learn, without labels, slots that hold one object each, and draw them.

    python examples/slots_without_labels.py [FRAMES VIDEOS]

Slots compete for a frame's patches (slot attention, Locatello et al., 2020), and each draws its
share, in slots.png of six frames. The default learns next to nothing; docs/memory.md has more.
"""

import sys
from itertools import chain, count

import torch
from PIL import Image
from torch import Tensor, nn

import ivcl_fast
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import open_data
from ivcl_fast.models.reference import all_patches, grid_positions, unpatchify
from ivcl_fast.training.optim import Schedule, make_optimizers, set_lr

CFG = ivcl_fast.IVCLConfig(patch_size=4, depth=2, num_slots=1)
SLOTS, ROUNDS, D, N, PIXELS = 11, 3, CFG.embed_dim, CFG.num_patches, CFG.patch_size**2


class SlotAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = ivcl_fast.IVCL(CFG).encoder
        self.features = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D), nn.LayerNorm(D))
        self.slot_tokens = nn.Parameter(torch.randn(1, SLOTS, D) / 2)
        self.query = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D, bias=False))
        self.keys, self.values = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.update, self.norm = nn.GRUCell(D, D), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))
        self.place, self.pos_embed = nn.Linear(D, D), nn.Parameter(grid_positions(CFG.grid, D) / 2)
        self.draw = nn.Sequential(nn.GELU(), nn.Linear(D, D), nn.GELU(), nn.Linear(D, 4 * PIXELS))
        self.background = nn.Parameter(torch.zeros(N, 3, PIXELS))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Patch rows [B, T, N, 3PP] to frames [F, N, 3, PP] and slots' shares [F, S, N, 1, PP]."""
        x = self.features(self.encoder(rows, all_patches(rows))[1].flatten(0, 1))
        keys, values = self.keys(x) * D**-0.5, self.values(x)
        slots = self.slot_tokens.expand(len(x), -1, -1)
        for _ in range(ROUNDS):
            share = (self.query(slots) @ keys.mT).float().softmax(dim=1) + 1e-6  # over the slots
            seen = (share / share.sum(-1, keepdim=True)).to(values) @ values
            slots = self.update(seen.flatten(0, 1), slots.flatten(0, 1)).view_as(slots).float()
            slots = slots + self.mlp(self.norm(slots))
        drawn = self.draw(self.place(slots).unsqueeze(2) + self.pos_embed).float()
        pixels, share = drawn.unflatten(-1, (4, PIXELS)).split([3, 1], dim=-2)
        return (share.softmax(dim=1) * pixels).sum(dim=1) + self.background, share.softmax(dim=1)


def train(frames: int = 512, videos: int = 60) -> None:
    torch.manual_seed(0)
    data = open_data(DataConfig(train_videos=videos, val_videos=6), CFG)
    loader = data.loader("train", batch_size=8, num_frames=4, seed=0, training=True)
    model, schedule = SlotAttention(), Schedule(frames, lr=1.5e-3, batch_size=32, optimizer="muon")
    optimizers, batches = make_optimizers(model, schedule), map(loader.epoch, count())
    for step, batch in zip(range(schedule.steps), chain.from_iterable(batches), strict=False):
        set_lr(optimizers, schedule.lr_at(step))
        frame = batch.rows.flatten(0, 1).unflatten(-1, (3, PIXELS)) / 255
        with torch.autocast("cpu", torch.bfloat16):
            drawn, share = model(batch.rows)
        loss = ((drawn - (frame - 0.5) / 0.15) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % max(1, schedule.steps // 8) == 0:
            print(f"{32 * (step + 1):,} frames: loss {loss.item():.3f}", flush=True)
    cells = torch.cat([frame[:, None], 1 - share * (1 - frame[:, None])], dim=1)[:6].detach()
    pixels = unpatchify(cells.flatten(-2), CFG.patch_size).permute(0, 3, 1, 4, 2)
    Image.fromarray((255 * pixels.flatten(2, 3).flatten(0, 1)).byte().numpy()).save("slots.png")


if __name__ == "__main__":
    train(*map(int, sys.argv[1:]))
