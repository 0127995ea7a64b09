"""PyTorch runs what Triton cannot."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ivcl_fast.kernels import _op, _triton, launch, unsupported_reason
from ivcl_fast.training.hardware import compile_unsupported_reason

GPU = torch.device("cuda")


@pytest.fixture
def triton(monkeypatch):
    """As where Triton can compile for a GPU."""
    for name, value in (("MISSING", None), ("CANNOT_LAUNCH", None), ("INTERPRET", False)):
        monkeypatch.setattr(_triton, name, value)


@pytest.fixture
def chip(monkeypatch):
    """A function that sets the compute capability."""

    def forget():
        _op._chip_unsupported_reason.cache_clear()
        launch._capability.cache_clear()

    def set_capability(*capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        forget()

    yield set_capability
    forget()


def test_no_kernels_without_a_c_compiler_or_headers(monkeypatch, tmp_path, triton):
    """Triton compiles its launcher and would fail at the first kernel."""
    for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    found = _triton._launcher_unsupported_reason
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/gcc" if name == "gcc" else None)
    monkeypatch.setattr(_triton.sysconfig, "get_path", lambda *_: str(tmp_path))
    assert f"no {tmp_path}/Python.h for Triton" in found()
    (tmp_path / "Python.h").touch()
    assert found() is None
    monkeypatch.setenv("CC", "ccache gcc")  # Triton would start a program of this whole name
    assert found().startswith("CC: expected a program without flags, got 'ccache gcc'")
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C compiler for Triton" in found()
    for expected in (None, found()):
        monkeypatch.setattr(_triton, "CANNOT_LAUNCH", expected)
        assert unsupported_reason(GPU) == compile_unsupported_reason(GPU) == expected
    monkeypatch.setattr(torch.version, "hip", "7.0")  # where PyTorch calls the GPUs "cuda", too
    assert "for NVIDIA GPUs" in found()


def test_triton_kernels_can_be_switched_off(monkeypatch):
    """Every op of a GPU is then plain PyTorch, as after a change of compiler that breaks one."""
    monkeypatch.setenv("IVCL_FAST_TRITON", "0")
    assert "IVCL_FAST_TRITON=0" in (_triton._launcher_unsupported_reason() or "")


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((7, 5), "sm_75 is older than sm_80"), ((8, 0), None), ((12, 0), None)],
)
def test_pytorch_computes_on_chips_older_than_the_kernels(triton, chip, capability, reason):
    """On sm_75 a program has 64 KiB of shared memory, and attention of 66 tokens asks for more."""
    chip(*capability)
    with FakeTensorMode():
        x = torch.zeros(2, device="cuda:0")
    run = _op._where_possible(lambda *args: "triton", lambda *args: "ref")
    assert unsupported_reason(GPU, torch.float32) == reason
    assert run(x, None, 2) == ("ref" if reason else "triton")
