"""A fresh start for ranks that torchrun starts again.

Ranks find each other through a key-value store, which torchrun keeps from one attempt to the next
(seen in torch 2.13): what ranks that died wrote there, their addresses, is still to be read, and
the new ones would try to connect to the dead. So every attempt writes below a name of its own. The
number of restarts is no such name: each machine counts its own.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(seconds=0.5)
"""How long rank 0 believes that a request is of this attempt."""


def fresh(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """The part of ``store`` that no earlier attempt has written to; all ranks have to call it.

    Rank 0 makes up its name. Every other asks for it under a key that it makes up itself, so that
    only an answer to this very rank is read. A request that nobody takes the answer to was left by
    a dead rank: rank 0 looks again. Raises ``torch.distributed.DistStoreError`` if a rank does not
    come within the store's timeout.
    """
    if rank:
        answer = uuid.uuid4().hex
        store.set(f"ask/{rank}", answer)
        name = store.get(answer).decode()
        store.set(f"{name}/{rank}", "here")
    else:
        name = uuid.uuid4().hex
        end = time.monotonic() + store.timeout.total_seconds()  # type: ignore[attr-defined]
        for other in range(1, world_size):
            while not _answered(store, other, name):
                if time.monotonic() > end:
                    raise dist.DistStoreError(f"rank {other} of {world_size} did not come")
    return dist.PrefixStore(name, store)


def _answered(store: dist.Store, rank: int, name: str) -> bool:
    store.set(store.get(f"ask/{rank}").decode(), name)
    try:
        store.wait([f"{name}/{rank}"], PATIENCE)
    except dist.DistStoreError:
        return False
    return True
