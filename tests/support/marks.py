"""Marks of tests that several modules share."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import kernels

needs_kernels = pytest.mark.skipif(
    not kernels.has_kernel(torch.empty(0)), reason="no kernel for this CPU: nothing is replaced"
)
