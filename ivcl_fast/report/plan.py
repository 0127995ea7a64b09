"""The memory and time of a training run, predicted from its settings."""

from __future__ import annotations

from ivcl_fast.distributed import group as distributed
from ivcl_fast.report.tables import Table
from ivcl_fast.training.hardware import PEAK_TFLOPS
from ivcl_fast.training.memory import fake_stages
from ivcl_fast.training.settings import TrainConfig

USABLE = 0.9
"""Assumed fraction of a GPU's memory available to a step."""
EFFICIENCY = 0.4
"""Assumed fraction of a GPU's peak FLOP/s that a step reaches."""
CARDS = {"24 GB": "NVIDIA GeForce RTX 4090", "80 GB": "NVIDIA H100 80GB HBM3"}
"""Names of GPUs by memory size."""
MEMORY = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimiser state",
    "casts": "weights in bf16", "activations": "activations", "peak": "peak",
}  # fmt: skip
"""Row titles by field of :class:`~ivcl_fast.training.memory.StepMemory`."""
ROWS = [
    *(f"{name}, GB" for name in MEMORY.values()),
    "MB per clip",
    *(f"clips that fit {size}" for size in CARDS),
    "GFLOP per clip",
    "clips/s, 4090",
    "clips/s, H100",
]


def show(config: TrainConfig, ranks: int) -> None:
    """Print the plan of a run: each stage in each precision that ``--amp`` allows.

    Raises :class:`~ivcl_fast.errors.UserError` if the batch does not split evenly over ``ranks``.
    """
    optim, speed, replicas = config.optim, config.speed, ranks > 1
    clips = distributed.local_batch_size(optim.batch_size, optim.grad_accum_steps, ranks)
    usable = [int(USABLE * int(size.removesuffix(" GB")) * 1e9) for size in CARDS]
    precisions = {"bf16": ["bf16"], "off": ["float32"]}.get(speed.amp, ["bf16", "float32"])
    header, columns = [""], [ROWS]
    for stage, flops, step in fake_stages(config, on_gpu=speed.device != "cpu"):
        for precision in precisions:
            bf16 = precision == "bf16"
            memory = step.memory(clips, bf16, replicas)
            per_clip = memory.activations / -(-clips // optim.grad_accum_steps)
            header.append(f"{stage}, {precision}")
            # The rate is that of products in bfloat16; float32 has another.
            rates = [EFFICIENCY * PEAK_TFLOPS[card] * 1e12 / flops for card in CARDS.values()]
            columns.append(
                [
                    *(f"{getattr(memory, field) / 1e9:,.2f}" for field in MEMORY),
                    f"{per_clip / 1e6:,.0f}",
                    *(f"{most:,}" for most in step.most_clips(usable, bf16, replicas)),
                    f"{flops / 1e9:,.0f}",
                    *(f"{rate:,.0f}" if bf16 else "" for rate in rates),
                ]
            )
    where = "the CPU" if speed.device == "cpu" else "each GPU" if replicas else "a GPU"
    title = f"{config.preset}, {clips} clips per step on {where}: predicted, not measured"
    Table(header, [*zip(*columns, strict=True)]).print(title)
    print(
        f"The peak excludes CUDA's context and library workspaces, so a step may use {USABLE:.0%} "
        f"of a GPU's memory (GB = 10^9 bytes). Clips/s assume {EFFICIENCY:.0%} of the data sheet's "
        "FLOP/s; small models are slower."
    )
    if config.stages.freeze_encoder and config.stages.stage != "pretrain":
        print("--freeze-encoder: not included in these figures; training on slots takes far less")
    if speed.shard:
        print("--shard: not included in these figures; sharding needs less memory on each GPU")
