"""An unused key-value store for ranks that torchrun restarts.

Ranks find each other through a key-value store, which torchrun keeps across restarts (as of torch
2.13). It still holds the addresses of dead ranks, to which new ranks would try to connect, so each
attempt uses a new key prefix. The restart count is not a suitable prefix, because each machine has
its own.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

ANSWER_TIMEOUT = timedelta(seconds=0.5)
"""Time after which rank 0 treats an unconfirmed request as stale."""


def unused_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return a view of ``store`` that no earlier attempt has used; all ranks must call this.

    Rank 0 chooses the key prefix. Every other rank requests it under a random key and confirms the
    reply; a request without confirmation came from a dead rank.
    """
    if rank:
        answer = uuid.uuid4().hex
        store.set(f"ask/{rank}", answer)
        prefix = store.get(answer).decode()
        store.set(f"{prefix}/{rank}", "here")
    else:
        prefix = uuid.uuid4().hex
        end = time.monotonic() + store.timeout.total_seconds()  # type: ignore[attr-defined]
        for other in range(1, world_size):
            while not _has_answered(store, other, prefix):
                if time.monotonic() > end:
                    raise dist.DistStoreError(f"rank {other} of {world_size} did not connect")
    return dist.PrefixStore(prefix, store)


def _has_answered(store: dist.Store, rank: int, prefix: str) -> bool:
    store.set(store.get(f"ask/{rank}").decode(), prefix)
    try:
        store.wait([f"{prefix}/{rank}"], ANSWER_TIMEOUT)
    except dist.DistStoreError:
        return False
    return True
