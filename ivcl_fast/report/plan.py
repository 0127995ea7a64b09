"""The memory of a training run, predicted from its settings."""

from __future__ import annotations

import os

import torch

from ivcl_fast.distributed import group as distributed
from ivcl_fast.report.tables import Table
from ivcl_fast.training.hardware import use_bf16
from ivcl_fast.training.memory import step_peaks
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.settings import TrainConfig

USABLE = 0.9
"""Assumed fraction of a device's memory available to a step."""
GPUS = 24, 80
"""Memory of the GPUs to plan for, in GB."""
CLASSES = 36
"""Number of classes of the finetuned model; their memory is negligible."""
SAMPLES = 16, 256
"""Clips of a micro-batch between whose peaks memory is linear."""


def show(config: TrainConfig, ranks: int) -> None:
    """Print the plan of a run: the memory of a step of each stage.

    The device is that of ``--device``; ``auto`` is the CPU on a machine without a GPU. Raises
    :class:`~ivcl_fast.errors.UserError` if the batch does not split evenly over ``ranks``.
    """
    optim, speed, parts = config.optim, config.speed, config.optim.grad_accum_steps
    clips = distributed.local_batch_size(optim.batch_size, parts, ranks)
    on_gpu = torch.cuda.is_available() if speed.device == "auto" else speed.device != "cpu"
    bf16 = speed.amp != "off" if on_gpu else use_bf16(speed.amp, torch.device("cpu"))
    here = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    sizes = GPUS if on_gpu else (here,)
    fits = [f"clips that fit {size} GB" for size in sizes]
    columns, header = [["fixed, GB", "MB per clip", "peak, GB", *fits]], [""]
    few, many = (parts * count for count in SAMPLES)
    for stage in config.stages.clips:
        peak, low, high = step_peaks(
            config.model,
            CLASSES if stage == "finetune" else None,
            (clips, few, many),
            Schedule(1, optimizer=optim.optimizer, grad_accum_steps=parts),
            grad_checkpoint=speed.grad_checkpoint,
            on_gpu=on_gpu,
            bf16=bf16,
            keep_gradients=ranks > 1,
        )
        each = (high - low) / (many - few)
        fixed = low - few * each
        most = [parts * max(0, int((USABLE * 1e9 * size - fixed) / each / parts)) for size in sizes]
        header.append(f"{stage}, {'bf16' if bf16 else 'float32'}")
        figures = f"{fixed / 1e9:.2f}", f"{each / 1e6:,.0f}", f"{peak / 1e9:,.2f}"
        columns.append([*figures, *(f"{count:,}" for count in most)])
    where = "this CPU" if not on_gpu else "each GPU" if ranks > 1 else "a GPU"
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
