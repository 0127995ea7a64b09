"""Many devices: one process (a *rank*) for each, started by torchrun; alone without it.

Every rank runs the same program on its share of every batch. What only one may do (records,
checkpoints, reports, what is said) rank 0 does. All of this is a no-op for a process that runs
alone, so callers need not ask.

Collectives of CPU tensors go over gloo, of CUDA tensors over NCCL.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ivcl_fast.distributed.rendezvous import fresh
from ivcl_fast.errors import UserError, tell

log = logging.getLogger(__name__)

ENVIRONMENT = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells every rank, beside ``WORLD_SIZE``."""

PREPARATION = timedelta(days=7)
"""How long ranks wait for the one that makes or decodes data."""


def rank() -> int:
    """This process among all, from torchrun's environment; 0 for a process that runs alone."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Processes in all."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is rank 0, which alone writes and speaks."""
    return rank() == 0


def print_rank0(line: str, file: TextIO | None = None) -> None:
    """Print on rank 0."""
    if is_main():
        print(line, file=file, flush=True)


def restarted() -> bool:
    """Whether torchrun started these ranks anew after one of them died (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def device_name(name: str) -> str:
    """``--device`` as this rank has to take it: every rank its own GPU."""
    if world_size() == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        raise UserError(f"--device: {name!r} with {world_size()} ranks; accepted: auto, cuda, cpu")
    return f"cuda:{local_rank()}"


def local_batch_size(batch_size: int, grad_accum_steps: int = 1) -> int:
    """The number of clips on each rank, of a batch of ``batch_size`` over all ranks.

    The rank's share has to split evenly into ``grad_accum_steps`` parts as well.

    Raises ``UserError`` if the parts were unequal: their mean would not be the batch's.
    """
    parts = world_size() * grad_accum_steps
    if batch_size % parts:
        each = f"{world_size()} ranks" + (
            f" of --grad-accum-steps {grad_accum_steps} parts" if grad_accum_steps > 1 else ""
        )
        raise UserError(
            f"--batch-size: {batch_size} clips do not split evenly over {each}; accepted: a "
            f"multiple of {parts}"
        )
    return batch_size // world_size()


# --- The group of ranks ---------------------------------------------------------------------------


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Connect the ranks, each on its ``device``, and part in good order.

    A rank that dies takes the connections along: the others say so in one line and exit with
    status 1, which torchrun answers by its rules (end, or ``--max-restarts``). A ``UserError`` is
    told by the first rank that meets it, before the others can miss that rank; exit status 2.
    """
    if world_size() == 1:
        yield
        return
    if missing := [name for name in ENVIRONMENT if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE is {world_size()} but {', '.join(missing)} not set; start the ranks with "
            "torchrun, or unset WORLD_SIZE for one"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not is_main():
        logging.getLogger("ivcl_fast").setLevel(logging.ERROR)
    me, all_ranks = rank(), world_size()
    try:
        store = fresh(next(dist.rendezvous("env://"))[0], me, all_ranks)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=me, world_size=all_ranks)
        yield
        dist.barrier()  # the first to leave would look dead to one that still sends
    except UserError as error:
        if first_to_fail(store):
            tell(error)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        log.error("rank %d lost another rank; the same command goes on from here", rank())
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def first_to_fail(store: dist.Store) -> bool:
    """Whether no rank asked this before; true where the ``store`` is gone with its rank."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:
        return True


def lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Rank 0 goes first, then one rank of every machine, then the rest.

    What the first makes the others find: on a shared file system all of them, without one the ranks
    of its machine.
    """
    if not dist.is_initialized():
        yield
        return
    waiting = dist.new_group(backend="gloo", timeout=PREPARATION)
    turn = 0 if is_main() else 1 if local_rank() == 0 else 2
    for _ in range(turn):
        dist.barrier(waiting)
    yield
    for _ in range(2 - turn):
        dist.barrier(waiting)
    dist.destroy_process_group(waiting)


def let_rank0_report_first(seconds: float = 3.0) -> None:
    """Before telling a mistake that rank 0 most likely tells too; then torchrun ends this rank."""
    if not is_main():
        time.sleep(seconds)


class StopVote:
    """Whether any rank was asked to stop: the same answer at the same step on all of them.

    The votes are counted while the next step computes: several ranks stop one step later.
    """

    def __init__(self) -> None:
        self._counting: tuple[Tensor, dist.Work] | None = None

    def __call__(self, asked: bool, last: bool = False) -> bool:
        """The result of the step before, and of this one where it is the ``last``."""
        if not dist.is_initialized():
            return asked
        before = self._result()
        vote = torch.tensor(int(asked))
        work = dist.all_reduce(vote, dist.ReduceOp.MAX, async_op=True)
        self._counting = vote, work
        return before or (last and self._result())

    def _result(self) -> bool:
        if self._counting is None:
            return False
        vote, work = self._counting
        work.wait()
        return bool(vote)


def mean(values: Tensor) -> Tensor:
    """The mean over ranks."""
    if not dist.is_initialized():
        return values
    dist.all_reduce(values)
    return values / world_size()


def broadcast_from_rank0(number: int) -> int:
    """Rank 0's number."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(number)
    dist.broadcast(shared, 0)
    return int(shared)


# --- Models -------------------------------------------------------------------------------------


def parallelize(model: nn.Module, shard: bool) -> nn.Module:
    """What to call in place of ``model`` so that gradients become the mean over all ranks.

    Whole replicas (DDP, which gives them rank 0's weights), or with ``shard`` FSDP2: parameters,
    gradients and optimiser state are cut in as many pieces as there are ranks, block by block.
    That works in place: the weights have to be equal before, and optimisers are made after it.
    """
    if not dist.is_initialized():
        return model
    if shard:
        from ivcl_fast.distributed.fsdp import shard_model

        return shard_model(model)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)


def accumulating(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """For a forward and backward pass; with ``more`` to come, replicas keep their gradients.

    Shards exchange theirs every time: keeping them whole is the memory that they are to save.
    """
    if more and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()
