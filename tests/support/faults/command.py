"""A command as a schedule starts it: one process, or ranks as torchrun would start them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from torch.distributed import TCPStore

from tests.support.faults.scenes import Scene
from tests.support.faults.system import Fault, Process

LOST = "; the same command continues the run\n"
"""The end of what a rank prints last if another has died."""
PAUSE = 0.05
"""Seconds that a stopped process stays stopped."""
TERM_SECONDS, KILL_SECONDS = 0.2, 5.0
"""How long after the first rank has failed the others are asked to end, and are killed."""


class Command:
    """Processes of one command; ``faults`` are those of each rank."""

    def __init__(self, scene: Scene, root: Path, faults: Sequence[Sequence[Fault]] = ()) -> None:
        environments: list[dict[str, str]] = [{}]
        if scene.ranks > 1:
            # It outlives every rank, as torchrun's does.
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            about = {
                "WORLD_SIZE": scene.ranks, "LOCAL_WORLD_SIZE": scene.ranks,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
            }  # fmt: skip
            ranks = ({"RANK": rank, "LOCAL_RANK": rank} for rank in range(scene.ranks))
            environments = [{k: str(v) for k, v in (about | own).items()} for own in ranks]
        main, arguments = scene.start(root)
        self.processes = [
            Process(main, arguments, root, own or (), environment)
            for environment, own in zip_longest(environments, faults)
        ]
        self._failed_at: float | None = None
        self._asked: list[Process] = []
        """Ranks that were asked to end."""

    @property
    def failed(self) -> bool:
        """Whether a process has ended with another status than 0."""
        return any(process.status for process in self.processes)

    def running(self) -> bool:
        """Whether a process runs still; one that has stopped itself continues after a pause."""
        states = [process.poll() for process in self.processes]
        for process, state in zip(self.processes, states, strict=True):
            if state == "stopped":
                time.sleep(PAUSE)
                os.kill(process.pid, signal.SIGCONT)
        if self.failed:
            self._end_others()
        return states != ["ended"] * len(states)

    def _end_others(self) -> None:
        """End the ranks that run when another has failed, as torchrun does."""
        now = time.monotonic()
        self._failed_at = self._failed_at or now
        for process in self.processes:
            if process.status is not None or now - self._failed_at < TERM_SECONDS:
                continue
            if process not in self._asked:
                os.kill(process.pid, signal.SIGTERM)
                self._asked.append(process)
            if now - self._failed_at > KILL_SECONDS:
                os.kill(process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill what runs still."""
        for process in self.processes:
            process.end()

    def struck(self) -> list[Fault]:
        """The faults that have occurred."""
        return [fault for process in self.processes for fault in process.struck()]

    def calls(self) -> list[dict[str, int]]:
        """Number of calls of each kind until now, for each rank."""
        return [process.calls() for process in self.processes]

    def ends(self) -> list[tuple[int | None, str]]:
        """Exit status and output of each process that has not ended just because another had."""
        found = [(p.status, p.output()) for p in self.processes if p not in self._asked]
        if len(self.processes) == 1:
            return found
        reported = any("error: " in output for _, output in found)
        return [
            (status, output)
            for status, output in found
            if not (status == 1 and output.endswith(LOST))
            and not (status == 2 and reported and "error: " not in output)  # told once, by another
        ]

    def output(self) -> str:
        """What all processes have printed."""
        return "".join(process.output() for process in self.processes)
