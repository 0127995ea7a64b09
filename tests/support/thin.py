"""A pytest plugin that runs a few tests per function and op, including the first and the last."""

from __future__ import annotations

import os
from typing import Any

import pytest

PER_FUNCTION = "IVCL_FAST_TESTS_PER_FUNCTION"
"""Environment variable with the number of tests per function; by default all."""


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    most = int(os.environ.get(PER_FUNCTION, len(items)))
    by_function: dict[str, list[Any]] = {}
    for item in items:
        op = item.callspec.params.get("op", "") if hasattr(item, "callspec") else ""
        by_function.setdefault(f"{item.nodeid.partition('[')[0]} {op}", []).append(item)
    kept: set[Any] = set()
    for those in by_function.values():
        count = min(most, len(those))
        kept |= {those[round(i * (len(those) - 1) / max(1, count - 1))] for i in range(count)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
