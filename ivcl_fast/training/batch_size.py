"""``--batch-size auto``: a batch for the memory of the GPUs on which a run starts.

Every GPU gets a power of two of clips, so that a little more or less free memory hardly ever
changes it: the largest that fits, still makes training faster, and leaves every stage enough steps
to learn something.
"""

from __future__ import annotations

import math

import torch

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.training.memory import FakeStep, fake_stages, stage_flops
from ivcl_fast.training.optim import LR_BATCH, scaled_lr
from ivcl_fast.training.settings import TrainConfig

SHARE = 0.8
"""Share of a GPU's free memory that a step may take, as predicted. The rest is for workspaces of
libraries, gaps between the allocator's blocks, and batches that are read ahead."""
ONCE = 0.05
"""A step is large enough if what it does once, whatever its batch, is no more than this share."""
STEPS = 500
"""Steps that the batch leaves to every stage."""
FLOPS, MEMORY, LAUNCH = 4e14, 3e12, 1e-6
"""Of an H100, assumed: FLOP/s in bfloat16, bytes/s, and seconds per kernel of a CUDA graph. Only
their ratios count, and those are alike on other cards."""
PASSES, LAUNCHES = 20, 1000
"""How many times a step moves the weights for clipping, casts and Muon, and its kernels, both as
counted for ``base64``."""


def choose(config: TrainConfig, ranks: int, free: int | None, bf16: bool) -> tuple[int, str]:
    """Choose the batch size of a run on ``ranks`` GPUs of which each has ``free`` bytes left.

    Returns the clips per step over all ranks, and the reason in one sentence. ``free`` None: the
    run is on CPUs, which gain nothing from larger batches. Raises :class:`UserError` if not even
    one clip fits.
    """
    parts = ranks * config.optim.grad_accum_steps
    if free is None:
        clips = parts * max(1, LR_BATCH // parts)
        return clips, "the default of CPUs, which larger batches make no faster"
    limit, fits, useful = int(SHARE * free), [], []
    for _, classes, step in fake_stages(config):
        fits += step.most_clips([limit], bf16, keep_gradients=ranks > 1)
        useful.append(useful_clips(step, stage_flops(config.model, classes)))
    left = f"{SHARE:.0%} of the {free / 1e9:.1f} GB that are free"
    fit = min(fits) // config.optim.grad_accum_steps
    if fit == 0:
        raise UserError(
            f"--batch-size: auto finds no room, one clip does not fit {left}; accepted: "
            "--grad-checkpoint, a smaller --preset, or a GPU with more memory"
        )
    enough = power_below(2 * math.ceil(max(useful)) - 1)
    by_steps = max(LR_BATCH, min(config.stages.clips.values()) // STEPS) // parts
    part = power_below(max(1, min(fit, enough, by_steps)))
    why = (
        "twice as many do not fit"
        if 2 * part > fit
        else "larger ones are hardly faster"
        if 2 * part > enough
        else f"larger ones would leave fewer than {STEPS} steps"
    )
    each = f"{part * parts // ranks} on each GPU, where" if ranks > 1 else "where"
    return part * parts, f"{each} {min(fits)} fit {left}; {why}"


def useful_clips(step: FakeStep, flops_per_clip: int) -> float:
    """Return the clips with which what a step does once takes the share :data:`ONCE` of it."""
    once = step.update_flops / FLOPS + PASSES * step.weights / MEMORY + LAUNCHES * LAUNCH
    return (1 / ONCE - 1) * once / (flops_per_clip / FLOPS)


def power_below(number: int) -> int:
    """Return the largest power of two that is at most ``number``, which is at least 1."""
    return 1 << (number.bit_length() - 1)


def with_batch_size(config: TrainConfig, device: torch.device, bf16: bool) -> TrainConfig:
    """Return the settings with a number in place of ``--batch-size auto``, and print it.

    All ranks call this together, each with its ``device``, and get the same number.
    """
    if config.optim.batch_size != "auto":
        return config
    ranks, free = distributed.world_size(), None
    if device.type == "cuda":
        free = distributed.min_over_ranks(torch.cuda.mem_get_info(device)[0])
    clips, reason = choose(config, ranks, free, bf16)
    optim = config.optim
    lr, finetune_lr = (
        scaled_lr(lr, clips, optim.lr_scaling) for lr in (optim.lr, optim.finetune_lr)
    )
    distributed.print_rank0(
        f"--batch-size auto: {clips} clips per step, {reason}. Peak learning rates with "
        f"--lr-scaling {optim.lr_scaling}: --lr {lr:.3g}, --finetune-lr {finetune_lr:.3g}"
    )
    return config.replace(batch_size=clips)
