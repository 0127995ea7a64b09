"""Choice of the place of a store, by its size and the free memory."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.data.store.placement import choose_placement
from ivcl_fast.errors import UserError

GB = 10**9
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "device", "step", "place"),
    [
        (20, GPU, 0, "gpu"), (40, GPU, 0, "disk"), (20, CPU, 0, "disk"), (20, None, 0, "disk"),
        (20, GPU, 52, "gpu"), (20, GPU, 53, "disk"),
    ],
)  # fmt: skip
def test_auto(monkeypatch, size, device, step, place):
    """Of 80 GB, a step and a store of 20 may take 72."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * GB, 80 * GB))
    assert choose_placement("auto", size * GB, device, lambda: step * GB) == place
    with pytest.raises(UserError, match=r"--placement: .* got gpu"):
        choose_placement("gpu", 1000 * GB, GPU)
