"""Progress of long work: lines where there is no live terminal, and honest rates."""

from __future__ import annotations

import pytest

from ivcl_fast import progress
from ivcl_fast.progress import Bar


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_a_line_every_15_seconds(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Bar("training", 100, "clips") as bar:
        for done in range(100):
            bar(done, note="loss 0.5" if done == 10 else None)
            clock.now += 1
        bar(100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 99 // 16 + 1  # every 16th second is the first after 15
    assert lines[0] == "training: 16/100 clips, 1.0/s, 84 s left, loss 0.5"
    assert lines[-1] == "training: 100/100 clips, 1.0/s, loss 0.5"


def test_rates_do_not_count_the_start(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Bar("rendering", 64, "videos") as bar:
        bar(0)
        for seconds, done in ((30, 1), (20, 41)):
            clock.now += seconds
            bar(done)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["rendering: 1/64 videos", "rendering: 41/64 videos, 2.0/s, 12 s left"]
