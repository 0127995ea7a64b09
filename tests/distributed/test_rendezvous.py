"""Ranks that start again find each other, not what dead ones left in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from ivcl_fast.distributed import rendezvous


@pytest.fixture
def store(monkeypatch) -> dist.Store:
    monkeypatch.setattr(rendezvous, "ANSWER_TIMEOUT", timedelta(seconds=0.05))
    return dist.HashStore()


def start(store: dist.Store, ranks: list[int], world_size: int = 3) -> list[dist.Store]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: rendezvous.unused_store(store, rank, world_size), ranks))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_ranks_share_what_earlier_attempts_did_not_write(store, order):
    for attempt in range(3):
        fresh = start(store, order)
        assert not any(part.check(["address"]) for part in fresh)
        fresh[0].set("address", str(attempt))
        assert all(part.get("address") == str(attempt).encode() for part in fresh)
