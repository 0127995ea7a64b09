"""What training on many GPUs could reach: a model of one step, from stated inputs.

``python -m benchmarks.scaling`` prints its tables, every input with where it comes from. It is
arithmetic, no measurement: no cluster was at hand. Replace an input by what you measured, such as
``--flops`` by the FLOP/s that one GPU reaches, and read the tables again.

Not modelled: ranks that are slower than others, arithmetic slowed down by communication beside it,
networks shared with other work, start-up. Validation does not scale at all: every rank measures all
clips.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.models import flops
from ivcl_fast.training.loop import Schedule, make_optimizers

FLOAT32 = 4
"""Bytes; gradients and weights travel as float32."""


def known(default: float, unit: str, origin: str) -> Any:
    """A field with a unit and where its value is from."""
    return field(default=default, metadata={"unit": unit, "origin": origin})


@dataclass(frozen=True)
class Cluster:
    """GPUs, and what connects and feeds them."""

    flops: float = known(
        415e12, "FLOP/s per GPU in training", "assumed: the target, 42 % of an H100's 989 in bf16"
    )
    product_flops: float = known(
        600e12, "FLOP/s of Muon's products", "assumed: 75 % of an H100's 800 in large products"
    )
    launch: float = known(
        5.5e-3, "s, least time of a step", "estimated: 1,100 launches of 5 us; a CUDA graph has 0"
    )
    memory: float = known(3.0e12, "B/s of GPU memory", "published: copies on an H100")
    per_machine: float = known(8, "GPUs in a machine", "HGX H100")
    inside: float = known(
        360e9, "B/s of all-reduce in a machine", "assumed: 80 % of NVLink's 450 (data sheet)"
    )
    outside: float = known(
        320e9, "B/s of all-reduce between", "assumed: 80 % of 8 ports of 400 Gbit/s a machine"
    )
    start: float = known(20e-6, "s to start a collective", "assumed")
    tree_hop: float = known(15e-6, "s per level of a tree of machines", "assumed (all-reduce)")
    ring_hop: float = known(10e-6, "s per machine of a ring", "assumed (shards)")
    bucket: float = known(25 * 2**20, "B of gradients in a collective", "DDP's default")
    gather: float = known(
        1.9e9,
        "B/s of frames into a rank's batches",
        "measured: one core of an AMD EPYC, 12 KB frames",
    )
    disk: float = known(
        0.5e9, "B/s of a checkpoint", "assumed; 0.14 measured on a busy virtual machine of 2 cores"
    )
    save_every: float = known(500, "steps between checkpoints", "--save-every's default")


@dataclass(frozen=True)
class Work:
    """What one model asks for; all of it counted from its sizes."""

    flops_per_clip: float
    parameters: float
    groups: float
    """Collectives of a sharded pass: blocks, and the rest."""
    product_flops: float
    """Of Muon, in a step, on every rank whatever their number."""
    clip_bytes: float
    """Stored frames of a clip."""
    checkpoint_bytes: float

    @classmethod
    def of(cls, cfg: IVCLConfig) -> Work:
        """Pretraining ``cfg`` with Muon."""
        with torch.device("meta"):
            model = IVCL(cfg)
        _, muon = make_optimizers(model, Schedule(1, optimizer="muon"))
        matrices = [p for group in muon.param_groups for p in group["params"]]
        parameters = sum(p.numel() for p in model.parameters())
        momenta = 2 * parameters - sum(p.numel() for p in matrices)  # AdamW keeps two, Muon one
        return cls(
            flops_per_clip=flops.training(cfg),
            parameters=parameters,
            groups=cfg.depth + cfg.temporal_depth + cfg.decoder_depth + 1,
            product_flops=sum(muon_flops(*p.shape) for p in matrices),
            clip_bytes=cfg.num_frames * cfg.num_patches * cfg.patch_dim,
            checkpoint_bytes=FLOAT32 * (parameters + momenta),
        )


def muon_flops(rows: int, columns: int, iterations: int = 5) -> int:
    """FLOPs of making one matrix orthogonal (Newton-Schulz on its short side)."""
    short, long = sorted((rows, columns))
    return iterations * (4 * short**2 * long + 2 * short**3)


@dataclass(frozen=True)
class Step:
    """One step on ``gpus`` GPUs; times in seconds."""

    gpus: int
    clips: int
    """Over all GPUs."""
    compute: float
    exposed: float
    """Communication that is not hidden behind arithmetic."""
    optimizer: float
    feed: float
    """Making a rank's batch, while the step before computes."""
    checkpoint: float
    """A step's share of writing one: all ranks wait for it."""
    sent: float
    """Bytes that leave each GPU."""

    @property
    def seconds(self) -> float:
        busy = self.compute + self.exposed + self.optimizer
        return max(busy, self.feed) + self.checkpoint

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds


def step(work: Work, cluster: Cluster, gpus: int, clips_per_gpu: int, shard: bool = False) -> Step:
    """The model: replicas (DDP), or with ``shard`` pieces over all GPUs (FSDP2)."""
    machines = math.ceil(gpus / cluster.per_machine)
    compute = max(clips_per_gpu * work.flops_per_clip / cluster.flops, cluster.launch)
    once = FLOAT32 * work.parameters * (gpus - 1) / gpus  # a reduce-scatter or an all-gather
    rate = cluster.inside if machines == 1 else cluster.outside
    if shard:  # weights gathered for forward and for backward, gradients scattered
        sent, pieces, hidden = 3 * once, 3 * work.groups, compute
        latency = cluster.start + cluster.ring_hop * (machines - 1)
    else:
        sent, hidden = 2 * once, compute * 2 / 3  # backward
        pieces = math.ceil(FLOAT32 * work.parameters / cluster.bucket)
        latency = cluster.start + cluster.tree_hop * math.log2(machines)
    talk = sent / rate + pieces * latency if gpus > 1 else 0.0
    held = work.parameters / (gpus if shard else 1)
    return Step(
        gpus=gpus,
        clips=gpus * clips_per_gpu,
        compute=compute,
        exposed=max(talk - hidden, talk / pieces),  # the last piece has nothing to hide behind
        optimizer=work.product_flops / cluster.product_flops + 7 * FLOAT32 * held / cluster.memory,
        feed=clips_per_gpu * work.clip_bytes / cluster.gather,
        checkpoint=work.checkpoint_bytes / cluster.disk / cluster.save_every,
        sent=sent,
    )


GPUS = (1, 8, 16, 64, 256, 1024)


def table(
    work: Work, cluster: Cluster, clips_per_gpu: int = 0, clips: int = 0, shard: bool = False
) -> list[str]:
    """Markdown: a fixed number of ``clips_per_gpu``, or of ``clips`` over all GPUs."""
    alone = step(work, cluster, 1, clips_per_gpu or clips)
    lines = [
        "| GPUs | clips per step | compute | exposed | optimiser | feed, beside | checkpoint "
        "| step | clips/s | of linear | sent per GPU |",
        "|" + "---|" * 11,
    ]
    for gpus in GPUS:
        if not clips_per_gpu and clips % gpus:
            continue
        s = step(work, cluster, gpus, clips_per_gpu or clips // gpus, shard)
        parts = (s.compute, s.exposed, s.optimizer, s.feed, s.checkpoint, s.seconds)
        share = s.clips_per_second / alone.clips_per_second / gpus
        lines.append(
            f"| {gpus:,} | {s.clips:,} | {' | '.join(f'{1e3 * t:.1f} ms' for t in parts)} "
            f"| {s.clips_per_second:,.0f} | {share:.0%} | {s.sent / 1e9:.2f} GB |"
        )
    return lines


def inputs(work: Work, cluster: Cluster) -> list[str]:
    """Markdown: every number that goes in, and where it is from."""
    lines = ["| input | value | where from |", "|---|---|---|"]
    lines += [
        f"| {f.name}: {f.metadata['unit']} | {getattr(cluster, f.name):.4g} "
        f"| {f.metadata['origin'] if getattr(cluster, f.name) == f.default else 'given'} |"
        for f in fields(cluster)
    ]
    return lines + [f"| {f.name} | {getattr(work, f.name):.4g} | counted |" for f in fields(work)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the inputs and the tables of one preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="base64")
    parser.add_argument("--mask-ratio", type=float, default=0.875)
    parser.add_argument("--queries", type=int, default=1, help="query frames")
    parser.add_argument("--per-gpu", type=int, default=88, help="clips")
    parser.add_argument("--batch", type=int, default=4096, help="clips, where they are fixed")
    for f in fields(Cluster):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=float, help=f.metadata["unit"])
    asked = vars(parser.parse_args(arguments))
    cluster = replace(
        Cluster(), **{f.name: asked[f.name] for f in fields(Cluster) if asked[f.name] is not None}
    )
    cfg = IVCLConfig.preset(
        asked["preset"], mask_ratio=asked["mask_ratio"], num_query_frames=asked["queries"]
    )
    work = Work.of(cfg)
    for title, lines in (
        ("Inputs", inputs(work, cluster)),
        (f"{asked['per_gpu']} clips per GPU", table(work, cluster, asked["per_gpu"])),
        (f"{asked['batch']:,} clips per step", table(work, cluster, clips=asked["batch"])),
        (f"{asked['per_gpu']} clips per GPU, `--shard`",
         table(work, cluster, asked["per_gpu"], shard=True)),
    ):  # fmt: skip
        print(f"**{title}**\n", *lines, "", sep="\n")


if __name__ == "__main__":
    main()
