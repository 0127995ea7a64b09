from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import sizes


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the sizes of all benchmarks tiny, in place: other modules import them by name."""
    batches, clips = dict(sizes.BATCHES), list(sizes.STAGE_CLIPS)
    for name in ("STAGE_STEPS", "REHEARSAL"):
        monkeypatch.setattr(sizes, name, getattr(sizes, name))
    sizes.rehearse()
    yield
    sizes.BATCHES.clear()
    sizes.BATCHES.update(batches)
    sizes.STAGE_CLIPS[:] = clips
