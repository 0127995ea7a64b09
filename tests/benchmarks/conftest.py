from __future__ import annotations

import pytest

from benchmarks import sizes


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sizes of all benchmarks tiny."""
    monkeypatch.setattr(sizes, "BATCHES", dict(sizes.BATCHES))
    monkeypatch.setattr(sizes, "STAGE_CLIPS", list(sizes.STAGE_CLIPS))
    for name in ("STAGE_STEPS", "REHEARSAL"):
        monkeypatch.setattr(sizes, name, getattr(sizes, name))
    sizes.rehearse()
