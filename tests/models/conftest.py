"""What the tests of models share."""

from __future__ import annotations

import pytest

from ivcl_fast.models.accelerate import crossovers


@pytest.fixture(autouse=True)
def fused_at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused forward passes run wherever they are equal, not only where they are the faster ones,
    which differs between machines."""
    always = dict.fromkeys(crossovers.LIMITS, (crossovers.ANY, crossovers.ANY))
    monkeypatch.setattr(crossovers, "LIMITS", always)
