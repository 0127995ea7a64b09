"""``python -m benchmarks.predictions.scaling``: a model of training on many GPUs, not measured.

It computes the time of one pretraining step from the inputs below. Replace an input by what you
measured, such as ``--flops`` by the FLOP/s that one GPU reaches, and read the table again. It
leaves out slow ranks, arithmetic that communication slows down, networks shared with other work,
start-up, and validation, which every rank does in full.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from dataclasses import dataclass, field, fields

import torch

from benchmarks.summary import lined_up
from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.models import flops
from ivcl_fast.training.optim import Schedule, make_optimizers

CFG = IVCLConfig.preset("base64", mask_ratio=0.875, num_query_frames=1)
CLIPS_PER_GPU, CLIPS_PER_STEP = 88, 4096
GPUS = (1, 8, 16, 64, 256, 1024)
FLOAT32, BF16 = 4, 2
"""Bytes; gradients and weights travel as float32, what Muon exchanges as bfloat16."""


def known(value: float, meaning: str, origin: str) -> float:
    """Return a field with what it means, its unit, and where its value is from."""
    return field(default=value, metadata={"meaning": meaning, "origin": origin})


@dataclass(frozen=True)
class Cluster:
    """GPUs, and what connects them."""

    flops: float = known(415e12, "FLOP/s per GPU", "assumed: 42 % of 989 in bf16")
    product_flops: float = known(600e12, "FLOP/s of Muon's products", "assumed: 75 % of 800")
    launch: float = known(5.0e-3, "s, least time of a step", "estimated: 1,000 launches of 5 us")
    memory: float = known(3.0e12, "B/s of GPU memory", "published: copies on an H100")
    per_machine: float = known(8, "GPUs in a machine", "HGX H100")
    inside: float = known(360e9, "B/s of all-reduce in a machine", "assumed: 80 % of NVLink's 450")
    outside: float = known(320e9, "B/s between machines", "assumed: 80 % of 8 x 400 Gbit/s")
    start: float = known(20e-6, "s to start a collective", "assumed")
    tree_hop: float = known(15e-6, "s per level of a tree of machines", "assumed (all-reduce)")
    ring_hop: float = known(10e-6, "s per machine of a ring", "assumed (shards)")
    bucket: float = known(25 * 2**20, "B of gradients in a collective", "DDP's default")
    gather: float = known(1.9e9, "B/s of frames into a batch", "measured: a core of an AMD EPYC")
    to_host: float = known(25e9, "B/s from a GPU to pinned memory", "assumed: PCIe 5 x16, half")
    disk: float = known(0.5e9, "B/s of a checkpoint", "assumed")
    save_every: float = known(500, "steps between checkpoints", "default of --save-every")


@dataclass(frozen=True)
class Work:
    """What a step of one model takes, counted from its sizes."""

    flops_per_clip: float
    parameters: float
    groups: float
    """Collectives of a sharded pass: one per block, and one for the rest."""
    muon: tuple[tuple[int, int, float], ...]
    """Of each shape of Muon's matrices: their number, elements, and FLOPs of one matrix's step."""
    clip_bytes: float
    """Stored frames of a clip."""
    checkpoint_bytes: float

    @classmethod
    def of(cls, cfg: IVCLConfig) -> Work:
        """Count pretraining with Muon."""
        with torch.device("meta"):
            model = IVCL(cfg)
        _, muon = make_optimizers(model, Schedule(1, optimizer="muon"))
        matrices = [p for group in muon.param_groups for p in group["params"]]
        shapes = Counter(tuple(p.shape) for p in matrices)
        parameters = sum(p.numel() for p in model.parameters())
        momenta = 2 * parameters - sum(p.numel() for p in matrices)  # AdamW keeps two, Muon one
        return cls(
            flops_per_clip=flops.training(cfg),
            parameters=parameters,
            groups=cfg.depth + cfg.temporal_depth + cfg.decoder_depth + 1,
            muon=tuple((n, math.prod(s), muon_flops(*s)) for s, n in shapes.items()),
            clip_bytes=cfg.num_frames * cfg.num_patches * cfg.patch_dim,
            checkpoint_bytes=FLOAT32 * (parameters + momenta),
        )


def muon_flops(rows: int, columns: int, iterations: int = 5) -> int:
    """Return the FLOPs of making a matrix orthogonal by Newton-Schulz on its short side."""
    short, long = sorted((rows, columns))
    return iterations * (4 * short**2 * long + 2 * short**3)


def step_seconds(work: Work, cluster: Cluster, gpus: int, clips: int, shard: bool = False) -> float:
    """Return the mean seconds of a step with ``clips`` per GPU, as replicas (DDP) or shards."""
    machines = math.ceil(gpus / cluster.per_machine)
    compute = max(clips * work.flops_per_clip / cluster.flops, cluster.launch)
    once = FLOAT32 * work.parameters * (gpus - 1) / gpus  # a reduce-scatter or an all-gather
    if shard:  # weights are gathered for forward and for backward, gradients scattered
        sent, pieces, hidden = 3 * once, 3 * work.groups, compute
        latency = cluster.start + cluster.ring_hop * (machines - 1)
    else:  # gradients are reduced while backward computes
        sent, hidden = 2 * once, compute * 2 / 3
        pieces = math.ceil(FLOAT32 * work.parameters / cluster.bucket)
        latency = cluster.start + cluster.tree_hop * math.log2(machines)
    bandwidth = cluster.inside if machines == 1 else cluster.outside
    talk = sent / bandwidth + pieces * latency if gpus > 1 else 0.0
    exposed = max(talk - hidden, talk / pieces)  # the last piece has nothing to hide behind
    held = FLOAT32 * work.parameters / (gpus if shard else 1)
    optimizer = muon_seconds(work, cluster, gpus, bandwidth, latency, shard)
    optimizer += 7 * held / cluster.memory
    loading = clips * work.clip_bytes / cluster.gather  # while the step before computes
    step = max(compute + exposed + optimizer, loading)
    # A step waits for the copy in pinned memory; a thread writes it, unless the next one is due.
    writing = work.checkpoint_bytes / cluster.disk
    waiting = max(0.0, writing - cluster.save_every * step)
    return step + (work.checkpoint_bytes / cluster.to_host + waiting) / cluster.save_every


def muon_seconds(
    work: Work, cluster: Cluster, gpus: int, bandwidth: float, latency: float, shard: bool
) -> float:
    """Return the seconds of Muon's products on a rank, and of the exchange of their results.

    Ranks share the matrices of each shape, and nothing hides the exchange: every replica gets what
    the others computed, and of shards every rank collects its matrices and hands their rows back.
    """
    own = [(-(-number // gpus), size, flops) for number, size, flops in work.muon]
    products = sum(number * flops for number, _, flops in own) / cluster.product_flops
    if gpus == 1:
        return products
    # Sent by a rank to each other rank; where a number does not come out even, zeros fill up.
    each = BF16 * sum(number * size for number, size, _ in own) / (gpus if shard else 1)
    exchanges = 2 if shard else 1
    sent = exchanges * each * (gpus - 1)
    return products + sent / bandwidth + exchanges * len(own) * latency


def tables(cluster: Cluster | None = None) -> list[str]:
    """Return Markdown: every input with its origin, and clips per second for numbers of GPUs."""
    cluster, work = cluster or Cluster(), Work.of(CFG)
    inputs = []
    for f in fields(cluster):
        value, origin = getattr(cluster, f.name), f.metadata["origin"]
        origin = origin if value == f.default else "given"
        inputs.append((f"`{f.name}`: {f.metadata['meaning']}", f"{value:.4g}", origin))
    counted = {f.name: getattr(work, f.name) for f in fields(work) if f.name != "muon"}
    counted["matrices of Muon"] = sum(number for number, _, _ in work.muon)
    counted["their FLOPs in a step"] = sum(number * flops for number, _, flops in work.muon)
    inputs += [(f"`{name}`", f"{value:.4g}", "counted") for name, value in counted.items()]
    each, together = f"{CLIPS_PER_GPU} clips per GPU", f"{CLIPS_PER_STEP:,} clips per step"
    settings = {
        each: (lambda gpus: CLIPS_PER_GPU, False),
        together: (lambda gpus: CLIPS_PER_STEP // gpus, False),
        f"{each}, `--shard`": (lambda gpus: CLIPS_PER_GPU, True),
    }
    speeds = []
    for gpus in GPUS:
        cells = [f"{gpus:,}"]
        for clips, shard in settings.values():
            rates = [
                clips(count) / step_seconds(work, cluster, count, clips(count), shard)
                for count in (gpus, 1)
            ]  # of one GPU among them, and of one alone
            share = f" ({rates[0] / rates[1]:.0%})" if gpus > 1 else ""
            cells.append(f"{gpus * rates[0]:,.0f}{share}")
        speeds.append(cells)
    return [
        *lined_up(("input", "value", "where from"), inputs),
        "",
        *lined_up(("GPUs", *settings), speeds),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.predictions.scaling", description=__doc__
    )
    for f in fields(Cluster):
        flag = f"--{f.name.replace('_', '-')}"
        parser.add_argument(flag, type=float, default=f.default, help=f.metadata["meaning"])
    print(*tables(Cluster(**vars(parser.parse_args()))), sep="\n")


if __name__ == "__main__":
    main()
