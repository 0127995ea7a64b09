"""The memory of a training run, predicted from its settings."""

from __future__ import annotations

import os

import torch

from ivcl_fast.distributed import group as distributed
from ivcl_fast.report.tables import Table
from ivcl_fast.training.hardware import use_bf16
from ivcl_fast.training.memory import fake_stages
from ivcl_fast.training.settings import TrainConfig

USABLE = 0.9
"""Assumed fraction of a device's memory available to a step."""
GPUS = 24, 80
"""Memory of the GPUs to plan for, in GB."""
MEMORY = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimiser state",
    "casts": "weights in bf16", "activations": "activations", "peak": "peak",
}  # fmt: skip
"""Row titles by field of :class:`~ivcl_fast.training.memory.StepMemory`."""


def show(config: TrainConfig, ranks: int) -> None:
    """Print the plan of a run: the memory of a step of each stage.

    The device is that of ``--device``; ``auto`` is the CPU on a machine without a GPU. Raises
    :class:`~ivcl_fast.errors.UserError` if the batch does not split evenly over ``ranks``.
    """
    optim, speed, replicas = config.optim, config.speed, ranks > 1
    clips = distributed.local_batch_size(optim.batch_size, optim.grad_accum_steps, ranks)
    on_gpu = torch.cuda.is_available() if speed.device == "auto" else speed.device != "cpu"
    bf16 = speed.amp != "off" if on_gpu else use_bf16(speed.amp, torch.device("cpu"))
    here = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    sizes = GPUS if on_gpu else (here,)
    fits = [f"clips that fit {size} GB" for size in sizes]
    columns = [[*(f"{name}, GB" for name in MEMORY.values()), "MB per clip", *fits]]
    header = [""]
    for stage, step in fake_stages(config, on_gpu):
        memory = step.memory(clips, bf16, replicas)
        per_clip = memory.activations / -(-clips // optim.grad_accum_steps)
        most = step.most_clips([int(USABLE * size * 1e9) for size in sizes], bf16, replicas)
        header.append(f"{stage}, {'bf16' if bf16 else 'float32'}")
        figures = [f"{getattr(memory, field) / 1e9:,.2f}" for field in MEMORY]
        columns.append([*figures, f"{per_clip / 1e6:,.0f}", *(f"{count:,}" for count in most)])
    where = "this CPU" if not on_gpu else "each GPU" if replicas else "a GPU"
    title = f"{config.preset}, {clips} clips per step on {where}: predicted, not measured"
    Table(header, [*zip(*columns, strict=True)]).print(title)
    print(
        f"The peak excludes libraries' own memory, so a step may use {USABLE:.0%} of the memory "
        "(GB = 10^9 bytes)." + ("" if on_gpu else " For a GPU: --device cuda.")
    )
    if config.stages.freeze_encoder and config.stages.stage != "pretrain":
        print("--freeze-encoder: not included in these figures; training on slots takes far less")
    if speed.shard:
        print("--shard: not included in these figures; sharding needs less memory on each GPU")
