"""Marks of tests that several modules share."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import kernels
from ivcl_fast.data.decode import decoder

needs_kernels = pytest.mark.skipif(
    not kernels.has_kernel(torch.empty(0)), reason="no kernel for this CPU: nothing is replaced"
)
NEEDS_DALI = pytest.mark.skipif(not decoder._dali_installed(), reason="DALI is not installed")
DALI = pytest.param("dali", marks=NEEDS_DALI)
"""The decoder's name as a parameter."""
