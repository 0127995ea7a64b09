"""Progress of long work: a live bar on a terminal, else a line every 15 seconds; on rank 0 only."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ivcl_fast.distributed import group as distributed

LINE_SECONDS = 15.0
"""Seconds between lines without a live bar."""


def duration(seconds: float) -> str:
    """Format a duration: ``45 s``, ``12 min``, ``19 h 49 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


class Bar:
    """Shows how many of ``total`` items are done, their rate and the time left.

    Items done before the first call do not count towards the rate. The live bar appears at the
    first call, so that a waiting bar does not disturb another.
    """

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done: int | None = None
        self._begin = self._first = 0
        self._note = ""
        self._start = self._last_line = time.monotonic()
        self._live: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Bar:
        return self

    def _show(self) -> None:
        if has_live_terminal() and distributed.is_main():
            self._live = Progress(
                TextColumn("{task.description:>12}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[text]}"),
                console=Console(),
            )
            self._live.start()
            self._task = self._live.add_task(self.name, total=self.total, text="")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif kind is None and self.done:
            self._print()

    def __call__(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Set the number of items done and, optionally, the total and the note next to the bar."""
        now = time.monotonic()
        self.total = self.total if total is None else total
        if self.done is None:
            self._show()
            self._begin = done
        # The first one takes longer: processes start, and code is compiled.
        if self.done is None or self.done == self._begin < done < self.total:
            self._first, self._start = done, now
        self.done = done
        self._note = self._note if note is None else note
        if self._live is not None:
            text = self._text()
            self._live.update(self._task, completed=done, total=self.total, text=text)
        elif done < self.total and now - self._last_line > LINE_SECONDS:
            self._last_line = now
            self._print()

    def add(self, count: int) -> None:
        """Add to the number of items done."""
        self((self.done or 0) + count)

    def _text(self) -> str:
        """For example ``320/640 clips, 41/s, 8 s left, loss 0.5``."""
        done = self.done or 0
        rate = (done - self._first) / max(time.monotonic() - self._start, 1e-9)
        parts = [f"{done}/{self.total} {self.unit}"]
        if rate:
            parts.append(f"{rate:.{0 if rate >= 10 else 1}f}/s")
            if done < self.total:
                parts.append(f"{duration((self.total - done) / rate)} left")
        return ", ".join(parts + ([self._note] if self._note else []))

    def _print(self) -> None:
        distributed.print_rank0(f"{self.name}: {self._text()}")


def has_live_terminal() -> bool:
    """Whether the output is a terminal that can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
