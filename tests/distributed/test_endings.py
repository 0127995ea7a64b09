"""How ranks leave each other, where their collectives are pretended: none is on a GPU."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.training.signals import Interrupted

GPU, CPU = torch.device("cuda"), torch.device("cpu")
NCCL = """NCCL error in: NCCLUtils.cpp:94, unhandled system error, NCCL version 2.29.3
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-a4Gk2L (size 33030528)
"""


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What rank 0 of two calls of PyTorch."""
    called: list[str] = []
    place = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (place | {"WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    store = dist.HashStore()
    for name, function in {
        "rendezvous": lambda method: iter([(store, 0, 2)]),
        "init_process_group": lambda *arguments, **options: called.append("connect"),
        "is_initialized": lambda: "connect" in called,
        "new_group": lambda **options: None,
        "barrier": lambda group: called.append("wait"),
        "destroy_process_group": lambda: called.append("leave"),
    }.items():
        monkeypatch.setattr(dist, name, function)
    monkeypatch.setattr(distributed, "unused_store", lambda store, rank, world_size: store)
    return called


def test_ranks_leave_each_other_when_the_work_is_done(calls):
    with distributed.process_group(GPU):
        calls.append("work")
    assert calls == ["connect", "work", "wait", "leave"]


def test_ranks_that_stop_together_leave_each_other(calls):
    with pytest.raises(Interrupted), distributed.process_group(GPU):
        raise Interrupted(15)
    assert calls == ["connect", "leave"]


@pytest.mark.parametrize("error", [UserError("gone"), KeyError("a bug"), dist.DistBackendError()])
def test_a_rank_that_fails_alone_waits_for_no_other_on_a_gpu(calls, error):
    """NCCL ends a connection together: the others may be in the middle of a collective."""
    for device, expected in {GPU: ["connect"], CPU: ["connect", "leave"]}.items():
        calls.clear()
        with pytest.raises((SystemExit, KeyError)), distributed.process_group(device):
            raise error
        assert calls == expected


def test_a_rank_without_connection_says_why(calls, caplog):
    """In one line, also what NCCL says last: the cause may be none that the same command mends."""
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(SystemExit) as stop,
        distributed.process_group(GPU),
    ):
        raise dist.DistBackendError(NCCL)
    assert stop.value.code == 1
    assert caplog.messages == [
        "rank 0 has no connection to another rank (NCCL error in: NCCLUtils.cpp:94, unhandled "
        "system error, NCCL version 2.29.3: Error while creating shared memory segment "
        "/dev/shm/nccl-a4Gk2L (size 33030528)); the same command continues the run"
    ]


def test_ranks_that_never_meet(calls, caplog, monkeypatch):
    def wait_in_vain(method):
        store = dist.HashStore()
        store.set_timeout(timedelta(seconds=0.01))
        store.get("ask/1")

    monkeypatch.setattr(dist, "rendezvous", wait_in_vain)
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(SystemExit) as stop,
        distributed.process_group(CPU),
    ):
        raise AssertionError
    assert stop.value.code == 1 and calls == []
    (message,) = caplog.messages
    assert message.startswith("rank 0 has no connection to another rank (") and "\n" not in message


def test_a_checkpoint_that_is_due_is_decided_once(calls, monkeypatch):
    """Ranks ask for it until they hear of the decision, a step later."""
    calls.append("connect")
    done = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(dist, "all_reduce", lambda votes, op, async_op: done)
    decide, asked = distributed.Decision(), [False, True, True, False, False, True, True, False]
    decided = [decide(False, save)[1] for save in asked]
    assert decided == [False, False, True, False, False, False, True, False]
