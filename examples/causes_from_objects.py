"""Train a temporal transformer to reason about causes, from custom slots of one object each.

    python examples/causes_from_objects.py [PROBLEMS CLIPS [SEED [mixed]]]

The slots encode the true attributes of the objects in panels of ACRE's Sys regime; with "mixed", a
random rotation mixes the eight slots of a panel. The default is too short to learn; see
docs/learnt.md for longer training.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import ivcl_fast
from ivcl_fast.data.formats.acre import COLORS, CONTEXT, MATERIALS, QUERIES, Panel, object_table
from ivcl_fast.data.synthetic.acre.rules import draw_problem
from ivcl_fast.training.hardware import has_fast_bf16
from ivcl_fast.training.optim import Schedule, make_optimizers, set_lr

BF16 = has_fast_bf16(torch.device("cpu"))
SIZES = dict(num_frames=7, num_query_frames=1, num_slots=8, embed_dim=64, num_heads=2, depth=1)
CFG = ivcl_fast.IVCLConfig(**SIZES, temporal_depth=4)
VALUES = "cube", "cylinder", "sphere", *COLORS, *MATERIALS, "on", "off", "no"
OBJECTS = object_table("sys", "train")


def slots_of(panel: Panel) -> Tensor:
    """Return a panel, [8, 16]: attributes of each object and the state of the machine."""
    looks = [(*OBJECTS[index], panel.light) for index in panel.objects]
    known = torch.tensor([[float(value in look) for value in VALUES] for look in looks])
    return F.pad(known, (0, 0, 0, 8 - len(known)))


def clips(split: str, problems: int) -> tuple[Tensor, Tensor]:
    """Return the slots [N, 7, 8, 16] and the labels [N] of four queries per problem."""
    slots, labels = [], []
    for problem in (draw_problem("sys", split, 0, number) for number in range(problems)):
        panels = [slots_of(panel) for panel in problem]
        for q in QUERIES:
            slots.append(torch.stack([panels[i] for i in (*CONTEXT, q)]))
            labels.append(problem[q].label)
    return torch.stack(slots), torch.tensor(labels)


def train(problems: int = 60, count: int = 960, seed: int = 0, mixed: bool = False) -> None:
    """Train on ``problems``; print how many queries of 1,000 test problems are answered."""
    torch.manual_seed(seed)
    (slots, labels), (test, answers) = clips("train", problems), clips("test", min(problems, 1000))
    rotation, _ = torch.linalg.qr(torch.randn(128, 128))

    def tokens(x: Tensor) -> Tensor:
        """Return slots [B, 7, 8, 64] with the objects of a panel in random order."""
        order = torch.rand(x.shape[:3]).argsort(-1)
        x = x.gather(2, order[..., None].expand_as(x))
        x = (x.flatten(2) @ rotation).view_as(x) if mixed else x
        return F.pad(4 * x, (0, 48))

    model = ivcl_fast.IVCLClassifier(CFG, 3)
    schedule = Schedule(count, lr=3e-3, batch_size=32, optimizer="muon")
    optimizers = make_optimizers(model, schedule)
    for step in range(schedule.steps):
        set_lr(optimizers, schedule.lr_at(step))
        drawn = torch.randint(len(slots), (schedule.batch_size,))
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            loss = F.cross_entropy(model(tokens(slots[drawn])), labels[drawn])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % max(1, schedule.steps // 8) == 0:
            with torch.inference_mode():
                right = (model(tokens(test)).argmax(-1) == answers).float().view(-1, 4)
            print(f"{schedule.batch_size * (step + 1):,} clips: {right.mean():.1%} of queries, "
                  f"{right.prod(1).mean():.1%} of problems", flush=True)  # fmt: skip


if __name__ == "__main__":
    train(*map(int, sys.argv[1:4]), mixed=sys.argv[4:] == ["mixed"])
