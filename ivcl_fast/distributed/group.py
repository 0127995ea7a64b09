"""The ranks of a run: one process per device, started by torchrun; a single process without it.

Every rank runs the same program on its part of every batch. Only rank 0 writes records, checkpoints
and reports, and prints. In a single process all of these functions are no-ops, so callers need not
distinguish the two cases.

Collectives of CPU tensors use gloo, those of CUDA tensors NCCL.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from ivcl_fast.distributed.rendezvous import unused_store
from ivcl_fast.errors import UserError, print_error
from ivcl_fast.text import first_line

log = logging.getLogger(__name__)

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for every rank, besides ``WORLD_SIZE``."""

LONG_TIMEOUT = timedelta(days=7)
"""Timeout of waits between long tasks, such as preparing data or evaluating clips."""


def rank() -> int:
    """Rank of this process, from torchrun's environment; 0 for a single process."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Number of ranks."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is rank 0, the only one that writes files and prints."""
    return rank() == 0


def print_rank0(line: str, file: TextIO | None = None) -> None:
    """Print a line on rank 0 only."""
    if is_main():
        print(line, file=file, flush=True)


def is_restart() -> bool:
    """Whether torchrun restarted the ranks after one of them died (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def device_of_rank(name: str) -> str:
    """Name of this rank's device for ``--device``; each rank has its own GPU.

    Raises :class:`UserError` if several ranks would share one GPU.
    """
    if world_size() == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        raise UserError(
            f"--device: expected auto, cuda or cpu with {world_size()} ranks, got {name!r}"
        )
    if torch.cuda.device_count() == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return "cuda:0"  # Slurm and others make only one GPU visible to each rank
    return f"cuda:{local_rank()}"


def local_batch_size(batch_size: int, grad_accum_steps: int = 1, ranks: int | None = None) -> int:
    """Number of clips per rank of a batch of ``batch_size`` clips.

    ``ranks``: by default those of this run. Raises :class:`UserError` if a rank's clips do not
    split evenly into ``grad_accum_steps`` parts, because the mean over unequal parts is not the
    mean over the batch.
    """
    ranks = ranks or world_size()
    parts = ranks * grad_accum_steps
    if batch_size % parts:
        each = f" with --grad-accum-steps {grad_accum_steps}" if grad_accum_steps > 1 else ""
        raise UserError(
            f"--batch-size: expected a multiple of {parts} for {ranks} ranks{each}, got "
            f"{batch_size}"
        )
    return batch_size // ranks


class Interrupted(Exception):
    """A signal stopped the command, on all ranks together.

    ``advice``: how to continue, for the user.
    """

    def __init__(self, signum: int, advice: str = "the same command continues") -> None:
        super().__init__(f"{signal.Signals(signum).name}; {advice}")
        self.signum = signum


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect the ranks, each on its ``device``, within the ``with`` block.

    If a rank dies, the others report it in one line and exit with status 1.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # libraries and Triton use the current device
    if world_size() == 1:
        yield
        return
    if missing := [name for name in TORCHRUN_VARIABLES if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE: expected ranks started by torchrun, got {world_size()} without "
            + ", ".join(missing)
        )
    if not is_main():
        logging.getLogger("ivcl_fast").setLevel(logging.ERROR)
    can_leave = device.type != "cuda"
    try:
        store = unused_store(next(dist.rendezvous("env://"))[0], rank(), world_size())
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size())
        waiting_group()
        yield
        barrier()  # a rank that leaves early looks dead to the others
        can_leave = True
    except Interrupted:
        can_leave = True
        raise
    except UserError as error:
        let_rank0_report_first()
        print_error(error)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        log.error(
            "rank %d has no connection to another rank (%s); the same command continues the run",
            *(rank(), first_line(error)),
        )
        raise SystemExit(1) from None
    finally:
        # Ranks shut down NCCL together; otherwise one would wait for ranks that still compute or
        # are dead.
        if can_leave and dist.is_initialized():
            dist.destroy_process_group()
        waiting_group.cache_clear()


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether connecting the ranks, or a collective, failed because a rank is dead."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@functools.cache
def waiting_group() -> Any:  # its type depends on the version
    """Create a second, gloo process group with a timeout of days, for long waits.

    All ranks connect at the start: a rank that connects later would not notice a dead one.
    """
    return dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier(waiting_group())


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on one rank of every other machine, then on the rest."""
    turn = 0 if is_main() else 1 if local_rank() == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
        barrier()


def let_rank0_report_first() -> None:
    """Wait, except on rank 0, whose exit most likely makes torchrun end this rank."""
    if not is_main():
        time.sleep(3.0)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Average a tensor over all ranks."""
    if not dist.is_initialized():
        return values
    dist.all_reduce(values)
    return values / world_size()


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return, for each flag, whether it is set on any rank; all ranks get the same result."""
    if not dist.is_initialized():
        return flags
    shared = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return tuple(map(bool, shared))


def broadcast_from_rank0(number: int) -> int:
    """Return rank 0's ``number`` on all ranks."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(number)
    dist.broadcast(shared, 0, waiting_group())
    return int(shared)
