"""How ranks leave each other, where their collectives are pretended: none is on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.training.signals import Interrupted

GPU, CPU = torch.device("cuda"), torch.device("cpu")


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
        "barrier": lambda: called.append("wait"),
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
