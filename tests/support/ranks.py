"""Runs a function in several processes that are connected as torchrun would connect them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from ivcl_fast.distributed import group as distributed

# Forked from a fresh process that has no threads yet, and has imported what takes long.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "torch._dynamo", "tensorboard.summary.writer.record_writer", "ivcl_fast.training.loop",
        "torch.distributed.fsdp",
    ]
)  # fmt: skip


def run_ranks(
    world: int, function: Callable[..., Any], *arguments: Any, connected: bool = True
) -> list[Any]:
    """What ``function(*arguments)`` returned, or the exception it raised, on each rank.

    Where ranks are not ``connected``, the function has to connect them itself.
    """
    # The store outlives every rank, as torchrun's does.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, ranks = [], []
    for rank in range(world):
        here, there = _processes.Pipe(duplex=False)
        about = {
            "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
        }  # fmt: skip
        environment = {name: str(value) for name, value in about.items()}
        process = _processes.Process(
            target=_rank, args=(there, environment, connected, function, arguments), daemon=True
        )
        process.start()
        there.close()
        pipes.append(here)
        ranks.append(process)
    results = [_receive(pipe) for pipe in pipes]
    for process in ranks:
        process.join()
    return results


def _rank(
    pipe: Connection,
    environment: dict[str, str],
    connected: bool,
    function: Callable[..., Any],
    arguments: tuple,
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    result: Any
    try:
        with distributed.process_group(torch.device("cpu")) if connected else nullcontext():
            result = function(*arguments)
    except BaseException as error:
        error.add_note(traceback.format_exc())
        result = error
    pipe.send_bytes(pickle.dumps(result))  # by value: the process ends before it is read


def _receive(pipe: Connection) -> Any:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return ChildProcessError("died")
