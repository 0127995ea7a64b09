"""The op tests again, in Triton's interpreter and on the other C++ objects; docstring examples.

The op tests run in processes of their own, because neither the interpreter's changes to Triton nor
the loading of an object can be undone.
"""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivcl_fast import kernels
from ivcl_fast.kernels import _ext
from ivcl_fast.kernels._objects import module
from tests.support import thin

BUILT = [i for i in _ext.supported_isas() if (_ext.FOLDER / f"{module(i)}.abi3.so").is_file()]


SAME_CODE = "fullgraph or opcheck or gradcheck or named"
"""Tests of what the objects for all instruction sets share."""


def run_op_tests(*flags: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "-m", "not gpu", *flags, "tests/kernels/ops"],
        cwd=Path(__file__).resolve().parents[2], env=os.environ | environment, capture_output=True,
        text=True,
    )  # fmt: skip
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def test_ops_in_tritons_interpreter():
    """All that have a Triton kernel. The references are the same as elsewhere."""
    run_op_tests("-k", "not (gradcheck or transformer_block or linear)", TRITON_INTERPRET="1")


@pytest.mark.parametrize("isa", [isa for isa in BUILT if isa != _ext.ISA])
def test_ops_on_another_instruction_set(isa):
    run_op_tests("-k", f"not ({SAME_CODE})", IVCL_FAST_ISA=isa)


def test_ops_in_pytorch():
    """What a machine without a C++ compiler runs. Shapes do not matter to plain PyTorch."""
    flags = "-p", thin.__name__, "-k", "not (gradcheck or named or inductor)"
    run_op_tests(*flags, **{thin.PER_FUNCTION: "3", "IVCL_FAST_ISA": "none"})


MODULES = sorted(
    path.stem for path in Path(kernels.__file__).parent.glob("*.py") if ">>>" in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(f"ivcl_fast.kernels.{name}")
    names = {"torch": torch} | {key: getattr(kernels, key) for key in kernels.__all__}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted and not result.failed
