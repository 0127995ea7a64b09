"""SIGINT and SIGTERM during training: finish the step, save a checkpoint, then stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ivcl_fast.distributed import group as distributed

STOPPING = b"\nstopping after this step, which is saved; press Ctrl-C again to stop at once\n"


class Interrupted(distributed.StopOfAllRanks):
    """A signal stopped the run, after a checkpoint was written."""

    advice = "the same command continues"
    """How to continue, for the user."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect the numbers of received SIGINT and SIGTERM signals instead of exiting.

    A second Ctrl-C kills the process at once. A second SIGTERM does not, because schedulers and
    torchrun may each send one. Ranks receive every Ctrl-C twice, from the terminal and from
    torchrun, so there the third SIGINT kills.
    """
    caught: list[int] = []
    per_ctrl_c = 1 if distributed.world_size() == 1 else 2

    def handle(signum: int, frame: FrameType | None) -> None:
        if not caught and distributed.is_main():
            os.write(2, STOPPING)  # print is not reentrant, and may be what was interrupted
        caught.append(signum)
        if caught.count(signal.SIGINT) == per_ctrl_c:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
