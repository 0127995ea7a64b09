"""What the tests of models share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def fused_wherever_equal(fused_at_every_length: None) -> None:
    """All tests of models are about what is equal, not about what is faster."""
