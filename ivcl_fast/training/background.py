"""Training checkpoints written in the background: a step waits for a copy in memory, not a disk."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from ivcl_fast.distributed import group as distributed
from ivcl_fast.training import checkpoint
from ivcl_fast.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)


class BackgroundWriter:
    """Stores the checkpoints of one stage in a thread, one after the other.

    A checkpoint that cannot be written costs a warning of one line, and the ones before it are
    kept. Until :meth:`wait` returns, the newest checkpoint may not be on disk.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder, self.stage = folder, stage
        self._writing: Future[None] | None = None

    def store(self, snapshot: Checkpoint) -> None:
        """Start to write rank 0's ``snapshot``, which has to stay as it is, after the one before.

        Raises what :meth:`wait` raises.
        """
        self.wait()
        if distributed.is_main():
            thread = ThreadPoolExecutor(1, f"checkpoint of {self.stage}")
            self._writing = thread.submit(self._store, snapshot)
            thread.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until all is on disk. Raises an error of the thread that no full disk explains."""
        if (writing := self._writing) is not None:
            wait([writing])
            self._writing = None
            writing.result()

    def _store(self, snapshot: Checkpoint) -> None:
        try:
            checkpoint.store(self.folder, snapshot)
        except OSError as error:
            log.warning(
                "%s: no checkpoint of step %d could be written: %s; training continues, and the "
                "checkpoints before it are kept",
                *(self.stage, snapshot.step, error),
            )
