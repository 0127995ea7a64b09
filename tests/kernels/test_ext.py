"""Which C++ object is loaded, and that none, a stale or a broken one only costs speed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.kernels._objects import ISAS, MARK, digest, module, whole

ROOT = Path(__file__).resolve().parents[2]
COMPILER = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)

able = pytest.mark.skipif(not _ext.supported_isas(), reason="no C++ kernels for this CPU")
loaded = pytest.mark.skipif(_ext.ISA is None, reason=str(_ext.MISSING))


@able
@pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="no C++ compiler on Linux")
@pytest.mark.skipif(
    _triton.INTERPRET or os.environ.get("IVCL_FAST_ISA") == "none", reason="switched off"
)
def test_with_a_compiler_the_kernels_are_there():
    """Otherwise the tests of the C++ kernels would be skipped without anyone noticing."""
    assert _ext.MISSING is None, f"{_ext.MISSING}: make build"
    assert (os.environ.get("IVCL_FAST_ISA") or _ext.supported_isas()[0]) == _ext.ISA


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the loader looks for objects instead: an empty folder."""
    monkeypatch.setattr(_ext, "FOLDER", tmp_path)
    monkeypatch.setattr(_triton, "INTERPRET", False)
    monkeypatch.setattr(_ext, "supported_isas", lambda: ("avx512", "avx2"))
    monkeypatch.delenv("IVCL_FAST_ISA", raising=False)
    return tmp_path


def test_nothing_built(folder):
    assert _ext._load() == "it was not built: that takes a C++ compiler, and torch beside the build"


def test_no_object_for_this_cpu(folder, monkeypatch):
    monkeypatch.setattr(_ext, "supported_isas", lambda: ())
    assert _ext._load() == "this CPU has no AVX2"


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("none", "IVCL_FAST_ISA=none"),
        ("avx512bf16", "IVCL_FAST_ISA: 'avx512bf16' is not one of none, avx512, avx2"),
        ("", "IVCL_FAST_ISA: '' is not one of none, avx512, avx2"),
    ],
)
def test_the_variable(folder, monkeypatch, named, reason):
    monkeypatch.setenv("IVCL_FAST_ISA", named)
    assert _ext._load() == reason


@loaded
def test_stale_and_broken_objects_are_passed_over(folder, monkeypatch, tmp_path):
    """The best one's defect is told; a whole one of these sources behind it is taken."""
    good = Path(_ext._library._name).read_bytes()
    mark = (MARK + digest(_ext.CSRC)).encode()
    best, next_best = (folder / f"{module(isa)}.abi3.so" for isa in ("avx512", "avx2"))
    best.write_bytes(good.replace(mark, MARK.encode() + b"0" * 16))
    stale = f"{best.name}: of other sources than csrc/; build it anew: make build"
    assert _ext._load() == stale
    for size in (0, 63, 1000, len(good) // 2, len(good) - 1):
        best.write_bytes(good[:size])
        assert _ext._load() == f"{best.name}: cut off; build or install it anew", size
    best.write_bytes(bytes(64) + mark)
    assert _ext._load().startswith(f"{best.name}: ")
    best.unlink()
    next_best.write_bytes(good.replace(mark, MARK.encode() + b"0" * 16))
    assert _ext._load() == stale.replace("avx512", "avx2")


@loaded
def test_built_objects_are_whole():
    for isa in ISAS:
        path = _ext.FOLDER / f"{module(isa)}.abi3.so"
        if path.is_file():
            assert whole(path.read_bytes()), path.name


def test_the_digest_changes_with_any_source(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    before = digest(tmp_path / "csrc")
    assert before == digest(ROOT / "csrc")
    (tmp_path / "csrc" / "op.h").open("a").write("\n")
    assert digest(tmp_path / "csrc") != before


def fresh(code: str, package: Path, **environment: str) -> str:
    """What code prints in a fresh interpreter, with the package from another checkout."""
    environment = {"TRITON_INTERPRET": "0", "PYTHONPATH": str(package)} | environment
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package,
        env={k: v for k, v in os.environ.items() if k != "IVCL_FAST_ISA"} | environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@loaded
@pytest.mark.parametrize("how", ["stale", "cut off"])
def test_a_defective_object_leaves_the_import_and_the_ops_alone(tmp_path, how):
    for name in ("ivcl_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "setup.py", tmp_path)
    if how == "cut off":
        shutil.rmtree(tmp_path / "csrc")
    for built in (ROOT / "kernels").glob("*.so"):
        content = built.read_bytes()
        if how == "cut off":
            content = content[: len(content) // 2]
        else:
            content = content.replace(MARK.encode(), MARK.upper().encode())
        (tmp_path / "kernels" / built.name).write_bytes(content)
    code = (
        "import torch, ivcl_fast\n"
        "from ivcl_fast.kernels import _ext, bias_gelu\n"
        "bias_gelu(torch.zeros(2, 3), torch.zeros(3))\n"
        "print(_ext.ISA, _ext.MISSING, dict(_ext.calls()))\n"
    )
    said = fresh(code, tmp_path)
    reason = ": of other sources" if how == "stale" else ": cut off"
    assert said.startswith("None ") and reason in said and said.endswith("{}\n")


@loaded
def test_another_instruction_set_by_name_and_counts():
    isa = next(
        isa
        for isa in reversed(_ext.supported_isas())
        if (_ext.FOLDER / f"{module(isa)}.abi3.so").is_file()
    )
    code = (
        "import torch\n"
        "from ivcl_fast.kernels import _ext, bias_gelu, dispatches\n"
        "assert set(n for n, _ in _ext.calls()) >= {'bias_gelu', 'short_attention'}\n"
        "before = dispatches()\n"
        "x, bias = torch.randn(3, 5, requires_grad=True), torch.randn(5)\n"
        "for _ in range(2): y = bias_gelu(x, bias)\n"
        "y.sum().backward()\n"
        "torch.testing.assert_close(y, torch.nn.functional.gelu(x + bias))\n"
        "print(_ext.ISA, _ext.MISSING, sorted((dispatches() - before).items()))\n"
    )
    calls = [(("bias_gelu", "cpp"), 2), (("bias_gelu_backward", "cpp"), 1)]
    assert fresh(code, ROOT, IVCL_FAST_ISA=isa) == f"{isa} None {calls}\n"
