from __future__ import annotations

import re

import pytest

from ivcl_fast import IVCLConfig
from ivcl_fast.errors import UserError


@pytest.mark.parametrize(
    ("ratio", "keep"), [(0.001, 63), (0.05, 61), (0.75, 16), (0.875, 8), (0.95, 3), (0.999, 1)]
)
def test_at_least_one_patch_is_seen_and_one_masked(ratio, keep):
    assert IVCLConfig.preset("tiny", mask_ratio=ratio).num_keep == keep


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("image_size", 60, "multiple of patch_size 8"), ("image_size", 8, "at least two"),
        ("depth", 0, "at least 1"), ("num_query_frames", 17, "num_frames"),
        ("mask_ratio", 1.0, "above 0 and below 1"), ("mask_ratio", float("nan"), "at most 8,192"),
        ("embed_dim", 130, "multiple of num_heads 4"), ("mask_ratio", "0.5", "a number"),
        ("norm_pix", 1, "True or False"), ("mlp_ratio", 1e-9, "a hidden width of at least 1"),
        ("pixel_std", 0.0, "above 0"), ("image_size", 4096, "at most 65,536 patches of 8"),
        ("objective", "gan", "ivcl, mae, joint"), ("widht", 3, "not a field of IVCLConfig"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(field, value, accepted):
    with pytest.raises(UserError, match=rf"^{field}: .*{re.escape(accepted)}") as error:
        IVCLConfig.preset("tiny", **{field: value})
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)
