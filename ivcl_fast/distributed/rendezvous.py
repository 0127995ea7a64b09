"""An unused key-value store for ranks that torchrun restarts.

Ranks find each other through a key-value store, which torchrun keeps from one attempt to the next
(seen in torch 2.13). The addresses that dead ranks wrote there remain, and the new ranks would try
to connect to them. So every attempt uses its own key prefix. The number of restarts cannot be that
prefix, because each machine counts its own.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

ANSWER_TIMEOUT = timedelta(seconds=0.5)
"""How long rank 0 waits for a rank to confirm before it takes the request for an old one."""


def unused_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return a view of ``store`` that no earlier attempt has used; all ranks have to call this.

    Rank 0 draws the key prefix. Every other rank asks for it under a random key of its own, so that
    it reads only an answer to itself. If nobody confirms an answer, the request was left by a dead
    rank, and rank 0 looks again. Raises ``torch.distributed.DistStoreError`` if a rank does not ask
    within the store's timeout.
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
                    raise dist.DistStoreError(f"rank {other} of {world_size} did not come")
    return dist.PrefixStore(prefix, store)


def _has_answered(store: dist.Store, rank: int, prefix: str) -> bool:
    store.set(store.get(f"ask/{rank}").decode(), prefix)
    try:
        store.wait([f"{prefix}/{rank}"], ANSWER_TIMEOUT)
    except dist.DistStoreError:
        return False
    return True
