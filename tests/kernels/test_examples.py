"""The examples in the kernels' docstrings run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

from ivcl_fast import kernels

MODULES = sorted(
    path.stem for path in Path(kernels.__file__).parent.glob("*.py") if ">>>" in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(f"ivcl_fast.kernels.{name}")
    names = {"torch": torch} | {key: getattr(kernels, key) for key in kernels.__all__}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted and not result.failed
