"""The memory and time of a training run, predicted from its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ivcl_fast.distributed import group as distributed
from ivcl_fast.report.tables import Table
from ivcl_fast.training.hardware import PEAK_TFLOPS
from ivcl_fast.training.memory import StepMemory, fake_stages
from ivcl_fast.training.settings import TrainConfig

USABLE = 0.9
"""Assumed fraction of a GPU's memory available to a step."""
EFFICIENCY = 0.4
"""Assumed fraction of a GPU's peak FLOP/s that a step reaches."""
CARDS = {"24 GB": "NVIDIA GeForce RTX 4090", "80 GB": "NVIDIA H100 80GB HBM3"}
"""Names of GPUs by memory size."""
MEMORY_ROWS = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimiser state",
    "casts": "weights in bf16", "activations": "activations", "peak": "peak",
}  # fmt: skip
"""Row titles by field of :class:`~ivcl_fast.training.memory.StepMemory`."""


@dataclass(frozen=True)
class StagePlan:
    """The memory and FLOPs of a stage per device."""

    stage: str
    precision: str
    memory: StepMemory
    clips: int
    """Clips per step on one device."""
    activations_per_clip: float
    """Bytes of activations per clip kept for the backward pass."""
    most_clips: dict[str, int]
    """Maximum number of clips per step, by memory size."""
    flops: int
    """FLOPs per clip."""

    def clips_per_second(self, card: str) -> float:
        """Return the clips per second of one GPU at :data:`EFFICIENCY`."""
        return EFFICIENCY * PEAK_TFLOPS[CARDS[card]] * 1e12 / self.flops


def plan_stages(config: TrainConfig, ranks: int = 1) -> Iterator[StagePlan]:
    """Predict each stage of a run, in each precision that ``--amp`` allows.

    Raises :class:`~ivcl_fast.errors.UserError` if the batch does not split evenly over ``ranks``.
    """
    optim, speed, replicas = config.optim, config.speed, ranks > 1
    clips = distributed.local_batch_size(optim.batch_size, optim.grad_accum_steps, ranks)
    usable = [int(USABLE * int(card.removesuffix(" GB")) * 1e9) for card in CARDS]
    precisions = {"bf16": ["bf16"], "off": ["float32"]}.get(speed.amp, ["bf16", "float32"])
    for stage, flops, step in fake_stages(config, on_gpu=speed.device != "cpu"):
        for precision in precisions:
            bf16 = precision == "bf16"
            most = step.most_clips(usable, bf16, replicas)
            memory = step.memory(clips, bf16, replicas)
            fit = dict(zip(CARDS, most, strict=True))
            per_clip = memory.activations / -(-clips // optim.grad_accum_steps)
            yield StagePlan(stage, precision, memory, clips, per_clip, fit, flops)


def plan_table(plans: list[StagePlan]) -> Table:
    """Return a table of stages side by side."""
    rows = [
        [f"{name}, GB", *(f"{getattr(plan.memory, field) / 1e9:,.2f}" for plan in plans)]
        for field, name in MEMORY_ROWS.items()
    ]
    rows.append(["MB per clip", *(f"{plan.activations_per_clip / 1e6:,.0f}" for plan in plans)])
    for card in CARDS:
        rows.append([f"clips that fit {card}", *(f"{p.most_clips[card]:,}" for p in plans)])
    rows.append(["GFLOP per clip", *(f"{plan.flops / 1e9:,.0f}" for plan in plans)])
    for card, gpu in CARDS.items():
        name = f"clips/s, {gpu.split()[-1] if 'RTX' in gpu else gpu.split()[1]}"
        # The rate is that of products in bfloat16; float32 has another.
        speeds = [
            f"{plan.clips_per_second(card):,.0f}" if plan.precision == "bf16" else ""
            for plan in plans
        ]
        rows.append([name, *speeds])
    return Table(["", *(f"{plan.stage}, {plan.precision}" for plan in plans)], rows)


def show(config: TrainConfig, ranks: int) -> None:
    """Print the plan of a run."""
    plans = [*plan_stages(config, ranks)]
    where = "the CPU" if config.speed.device == "cpu" else "each GPU" if ranks > 1 else "a GPU"
    title = f"{config.preset}, {plans[0].clips} clips per step on {where}"
    plan_table(plans).print(f"{title}: predicted, not measured")
    print(
        f"The peak excludes CUDA's context and library workspaces, so a step may use {USABLE:.0%} "
        f"of a GPU's memory (GB = 10^9 bytes). Clips/s assume {EFFICIENCY:.0%} of the data sheet's "
        "FLOP/s; small models are slower."
    )
    if config.stages.freeze_encoder and config.stages.stage != "pretrain":
        print("--freeze-encoder: not included in these figures; training on slots takes far less")
    if config.speed.shard:
        print("--shard: not included in these figures; sharding needs less memory on each GPU")
