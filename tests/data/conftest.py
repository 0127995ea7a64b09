"""What tests of data share."""

from __future__ import annotations

from multiprocessing.context import ForkContext

import pytest

from ivcl_fast.data import workers


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forks of this process: a fresh one takes seconds to import PyTorch."""
    monkeypatch.setattr(workers, "_WithoutMain", ForkContext)
