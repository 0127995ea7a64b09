"""Progress bars: a live bar on a terminal, a line now and then elsewhere; on rank 0 alone."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ivcl_fast.distributed import group as distributed

PLAIN_SECONDS = 15.0
"""Between two lines where the output is not a terminal."""


class Bar:
    """Counts ``total`` things of one kind, with rate and time left.

    ``bar.show(done, note)`` may be called as often as one likes; ``bar(done, total)`` is the same
    in the form that data builders call back.
    """

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self._first = 0
        self._start = self._last_line = time.monotonic()
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        if sys.stdout.isatty() and distributed.is_main():
            self._live = Progress(
                TextColumn("{task.description:>12}"),
                BarColumn(bar_width=30),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(),
            )
            self._live.start()
            self._task = self._live.add_task(self.name, total=self.total, rate="", note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif kind is None and self.done:
            self._line("")

    def start_at(self, done: int) -> None:
        """Begin with ``done`` things that an earlier run did; they do not count in the rate."""
        self.done = self._first = done
        self._start = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        self.show(done)

    def show(self, done: int, note: str = "") -> None:
        self.done = done
        if self._live is not None and self._task is not None:
            self._live.update(
                self._task, completed=done, total=self.total, rate=self._rate(), note=note
            )
        elif done < self.total and time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self._line(note)

    def _speed(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _rate(self) -> str:
        speed = self._speed()
        return f"{self.unit}, {speed:.{0 if speed >= 10 else 1}f}/s" if speed else self.unit

    def _line(self, note: str) -> None:
        if not distributed.is_main():
            return
        parts = [f"{self.name}: {self.done}/{self.total} {self._rate()}"]
        if 0 < self.done < self.total and self._speed():
            parts.append(f"{(self.total - self.done) / self._speed():.0f} s left")
        print(", ".join(parts + ([note] if note else [])), flush=True)
