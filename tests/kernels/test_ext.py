"""Which C++ object is loaded; a missing, outdated or damaged one only costs speed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.kernels._objects import MARK, digest, module

ROOT = Path(__file__).resolve().parents[2]
COMPILER = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)

supported = pytest.mark.skipif(not _ext.supported_isas(), reason="no C++ kernels for this CPU")
loaded = pytest.mark.skipif(_ext.ISA is None, reason=str(_ext.MISSING))


@supported
@pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="no C++ compiler on Linux")
@pytest.mark.skipif(
    _triton.INTERPRET or os.environ.get("IVCL_FAST_ISA") == "none", reason="switched off"
)
def test_kernels_are_built_where_there_is_a_compiler():
    """Otherwise the tests of the C++ kernels would be skipped without anyone noticing."""
    assert _ext.MISSING is None, f"{_ext.MISSING}: make build"
    assert (os.environ.get("IVCL_FAST_ISA") or _ext.supported_isas()[0]) == _ext.ISA


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, where the loader looks for objects instead."""
    monkeypatch.setattr(_ext, "FOLDER", tmp_path)
    monkeypatch.setattr(_triton, "INTERPRET", False)
    monkeypatch.setattr(_ext, "supported_isas", lambda: ("avx512", "avx2"))
    monkeypatch.delenv("IVCL_FAST_ISA", raising=False)
    return tmp_path


WITH_AVX512 = ("avx512", "avx2")


@pytest.mark.parametrize(
    ("machine", "vectors", "has", "isas"),
    [
        ("x86_64", "DEFAULT", (), ()),
        ("AMD64", "AVX2", (), ("avx2",)),
        ("x86_64", "AVX512", (), WITH_AVX512),
        ("x86_64", "AVX512", ("bf16",), ("avx512bf16", *WITH_AVX512)),
        ("x86_64", "AVX512", ("bf16", "tiles"), ("avx512bf16", *WITH_AVX512)),
        ("x86_64", "AVX512", ("bf16", "tiles", "leave"), ("amx", "avx512bf16", *WITH_AVX512)),
        ("aarch64", "DEFAULT", (), ("generic",)),
    ],
)
def test_no_cpu_gets_instructions_that_it_lacks(monkeypatch, machine, vectors, has, isas):
    """Nor those that the operating system gives no leave for. The process would die of them."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    for name, feature in (
        ("_is_avx512_bf16_supported", "bf16"), ("_is_amx_tile_supported", "tiles"),
        ("_init_amx", "leave"),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cpu, name, lambda feature=feature: feature in has)
    assert _ext.supported_isas() == isas


def test_environment_variable_is_obeyed(folder, monkeypatch):
    monkeypatch.setenv("IVCL_FAST_ISA", "none")
    assert _ext._load() == "IVCL_FAST_ISA=none"
    monkeypatch.setenv("IVCL_FAST_ISA", "avx512bf16")
    assert "IVCL_FAST_ISA: expected one of none, avx512, avx2, got 'avx512bf16'" in _ext._load()


@loaded
def test_an_outdated_object_is_refused(folder):
    good = Path(_ext._library._name).read_bytes()
    mark = (MARK + digest(_ext.CSRC)).encode()
    best = folder / f"{module('avx512')}.abi3.so"
    best.write_bytes(good.replace(mark, MARK.encode() + b"0" * 16))
    outdated = f"{best.name}: built from other sources than csrc/; build it again: make build"
    assert _ext._load() == outdated
