"""What is installed: by which name, with which contents, and what the C++ compiler decides of it.

Wheels are built without network from a copy of the checkout, one with pip. A script stands in for
the compiler: it notes its calls and writes a file where an object should be. One wheel gets an
object of the checkout, and computes. One is unpacked into empty environments, which hold nothing
else or only PyTorch and NumPy.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ivcl_fast.kernels import _ext
from ivcl_fast.kernels._objects import ISAS, module
from ivcl_fast.models.weights import PACKAGED

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff", "Makefile",
    "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml", ".pre-commit-config.yaml",
    ".ci", ".github", "csrc", "kernels", "ivcl_fast", "tests", "benchmarks", "docs", "examples",
)  # fmt: skip
PACKAGED_MODEL = """
import torch
from ivcl_fast import IVCLClassifier

model = IVCLClassifier.from_pretrained("ivcl_fast/tiny-localize")
video = torch.zeros(1, 16, 3, 64, 64, dtype=torch.uint8)
print(model.class_names[model(video).argmax()])
"""
"""Answers with the model that comes with the package."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
BUILT = [isa for isa in ISAS if (isa == "generic") != X86]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C++ kernels are for Linux")

FAKE = """#!/bin/sh
# Fails on what a variable names; otherwise writes its own name into the file after -o.
case "$*" in
  *"$FAKE_FAILS"*) echo "fake: error: cannot compile this" >&2; exit 1 ;;
esac
echo begin >>"$0.log"
while [ "$1" != -o ]; do shift; done
echo object >"$2"
echo end >>"$0.log"
"""
LINKER = """#!/bin/sh
# A compiler that compiles nothing, and links by a copy.
while [ "$1" != -o ]; do shift; done
cp "{object}" "$2"
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with what lies about in a used one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in PARTS:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, copy / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, copy)
    (copy / "kernels" / f"{module('avx512')}.abi3.so").write_text("of another build")
    for kind in ("lib", f"lib.linux-{platform.machine()}-cpython-3{sys.version_info.minor}"):
        (copy / "build" / kind / "ivcl_fast").mkdir(parents=True)
        (copy / "build" / kind / "ivcl_fast" / "renamed.py").write_text("# of another build")
    return copy


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A compiler that always works, unless its arguments contain ``FAKE_FAILS``."""
    path = tmp_path / "fake-c++"
    path.write_text(FAKE)
    path.chmod(0o755)
    return path


def python(arguments: list[str], folder: Path, **environment: str) -> str:
    """Standard output and error of a fresh interpreter that must succeed."""
    dropped = ("CXX", "MAX_JOBS", "TRITON_INTERPRET", "PYTHONPATH")
    kept = {
        k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("IVCL_FAST")
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | {"FAKE_FAILS": "nothing"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(source: Path, out: Path, by_pip: bool = False, **environment: str) -> tuple[Path, str]:
    """The wheel of a source folder, and what was said while it was built.

    pip starts Python three times, this hook of the build backend once.
    """
    out.mkdir()
    hook = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--verbose"]
    pip = ["-m", "pip", "wheel", *options, "-w", str(out), "."]
    log = python(pip if by_pip else ["-P", "-c", hook, str(out)], source, **environment)
    (wheel,) = out.glob("*.whl")
    return wheel, log


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def objects(wheel: Path) -> set[str]:
    return {name for name in names(wheel) if name.endswith(".so")}


def paths(*isas: str) -> set[str]:
    return {f"ivcl_fast/kernels/{module(isa)}.abi3.so" for isa in isas}


def without_torch(folder: Path) -> str:
    """A path on which torch cannot be imported."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise ImportError('torch is hidden')\n")
    return str(folder)


def test_the_wheel_holds_the_package_and_nothing_else(checkout, fake, tmp_path):
    wheel, _ = build(checkout, tmp_path / "out", by_pip=True, CXX=str(fake))
    assert wheel.name == f"ivcl_fast-{VERSION}-cp311-abi3-linux_{platform.machine()}.whl"
    assert objects(wheel) == paths(*BUILT)
    modules = {
        *(f"ivcl_fast/{p.relative_to(ROOT / 'ivcl_fast')}" for p in ROOT.glob("ivcl_fast/**/*.py")),
        *(f"ivcl_fast/{p.relative_to(ROOT)}" for p in ROOT.glob("kernels/**/*.py")),
        "ivcl_fast/evaluation/published.csv",
        "ivcl_fast/py.typed",
        *(f"ivcl_fast/pretrained/{p.relative_to(PACKAGED)}" for p in PACKAGED.glob("*/*")),
    }
    rest = names(wheel) - objects(wheel) - modules
    assert modules <= names(wheel)
    assert {name.split("/")[0] for name in rest} == {f"ivcl_fast-{VERSION}.dist-info"}
    entries = zipfile.ZipFile(wheel).read(f"ivcl_fast-{VERSION}.dist-info/entry_points.txt")
    assert "ivcl-fast-train = ivcl_fast.console:run_script" in entries.decode()


def test_a_source_distribution_builds_the_same_wheel(checkout, fake, tmp_path):
    """The same to the byte: the hashes in its record are equal."""
    sdist = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    python(["-c", sdist, str(tmp_path)], checkout, CXX=str(fake))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        assert not [name for name in tar.getnames() if name.endswith((".so", ".pyc"))]
        tar.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    parts = (
        "tests/kernels/ops/conftest.py", "benchmarks/conftest.py", ".ci/run", "Makefile",
        "examples/quickstart.ipynb", "docs/hooks.py", "mkdocs.yml", ".github/workflows/ci.yml",
        *PARTS[PARTS.index("CHANGELOG.md") : PARTS.index(".ci")],
    )  # fmt: skip
    for name in (*parts, *(f"csrc/{path.name}" for path in (checkout / "csrc").iterdir())):
        assert (unpacked / name).is_file(), name
    records = []
    for number, source in enumerate((checkout, unpacked)):
        wheel, _ = build(source, tmp_path / str(number), CXX=str(fake))
        record = zipfile.ZipFile(wheel).read(f"ivcl_fast-{VERSION}.dist-info/RECORD").decode()
        records.append((wheel.name, sorted(record.splitlines())))
    assert records[0] == records[1]


def test_without_torch_the_wheel_is_pure_and_says_why(checkout, fake, tmp_path):
    hidden = without_torch(tmp_path / "hidden")
    wheel, log = build(checkout, tmp_path / "out", CXX=str(fake), PYTHONPATH=hidden)
    assert wheel.name == f"ivcl_fast-{VERSION}-py3-none-any.whl"
    assert "ivcl_fast: no C++ kernels are built: no torch beside the build (torch is hidden)" in log
    assert "ivcl_fast/kernels/_ext.py" in names(wheel) and not objects(wheel)
    assert "ivcl_fast/renamed.py" not in names(wheel)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    site = str(tmp_path / "site")
    info = python(["-m", "ivcl_fast.info"], tmp_path, PYTHONPATH=site)
    answer = python(["-c", PACKAGED_MODEL], tmp_path, PYTHONPATH=site, HF_HUB_OFFLINE="1")
    assert answer.startswith("cell ")
    reason = "not built; the build needs a C++ compiler, and torch in its environment"
    kernels = info.split("Kernels on the CPU\n")[1].split("\nAttention")[0].splitlines()
    told = [f"plain PyTorch, because {reason}" in kernel for kernel in kernels]
    assert len(kernels) > 5 and (all(told) or not _ext.supported_isas())


@pytest.mark.parametrize(
    ("named", "reason"),
    [("no-such-compiler", "found no no-such-compiler"), ("", "error: cannot compile this")],
)
def test_without_a_compiler_that_works_the_wheel_is_pure(checkout, fake, tmp_path, named, reason):
    wheel, log = build(checkout, tmp_path / "out", CXX=named or str(fake), FAKE_FAILS="-shared")
    assert wheel.name == f"ivcl_fast-{VERSION}-py3-none-any.whl"
    assert reason in log


@pytest.mark.skipif(not X86, reason="one instruction set on this machine")
@pytest.mark.parametrize("fails", ["-mamx-tile", f"{module('amx')}.abi3.so"])
def test_an_instruction_set_that_fails_is_left_out(checkout, fake, tmp_path, fails):
    """Whether the compiler refuses its flags, or only fails in the end."""
    wheel, log = build(checkout, tmp_path / "out", CXX=str(fake), FAKE_FAILS=fails)
    assert objects(wheel) == paths(*BUILT[1:])
    (said,) = [line for line in map(str.strip, log.splitlines()) if line.startswith("ivcl_fast: ")]
    assert BUILT[0] in said


def test_max_jobs_is_respected(checkout, fake, tmp_path):
    build(checkout, tmp_path / "out", CXX=str(fake), MAX_JOBS="1")
    log = Path(f"{fake}.log").read_text().split()
    assert len(log) > 2 * len(BUILT) * len(list((ROOT / "csrc").glob("*.cpp")))
    assert log == ["begin", "end"] * (len(log) // 2)


def test_builds_in_one_checkout_share_no_file(checkout, tmp_path):
    """Two at the same time would read each other's unfinished objects."""
    careful = tmp_path / "careful-c++"
    refuse = '[ -e "$2" ] && echo "error: $2 is there" && exit 1\n'
    careful.write_text(FAKE.replace("echo object", f"{refuse}echo object"))
    careful.chmod(0o755)
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    for _ in range(2):
        said = python(["setup.py", "--quiet", "build_ext", *folders], checkout, CXX=str(careful))
        assert "left out" not in said
    built = {path.name for path in (tmp_path / "lib" / "ivcl_fast" / "kernels").iterdir()}
    assert built == {Path(path).name for path in paths(*BUILT)}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MAX_JOBS", "many", "MAX_JOBS: 'many' is not a whole number from 1 on"),
        ("MAX_JOBS", "0", "MAX_JOBS: '0' is not a whole number from 1 on"),
        ("IVCL_FAST_BUILD", "mmx", "IVCL_FAST_BUILD: 'mmx' is not one of none, "),
    ],
)
def test_bad_settings_are_named_in_one_line(checkout, fake, name, value, reason):
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext"],
        cwd=checkout,
        env=os.environ | {"CXX": str(fake), name: value},
        capture_output=True,
        text=True,
    )
    assert done.returncode and done.stderr.startswith(reason) and done.stderr.count("\n") == 1


@pytest.mark.skipif(_ext.ISA is None, reason=str(_ext.MISSING))
def test_a_wheel_computes(checkout, tmp_path):
    """Its linker puts in the object that ``make build`` compiled in the checkout."""
    isa, linker = _ext.ISA, tmp_path / "c++"
    linker.write_text(LINKER.format(object=_ext.FOLDER / f"{module(isa)}.abi3.so"))
    linker.chmod(0o755)
    wheel, _ = build(checkout, tmp_path / "out", CXX=str(linker), IVCL_FAST_BUILD=isa)
    assert objects(wheel) == paths(isa)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import torch, ivcl_fast\n"
        "from ivcl_fast.kernels import _ext, bias_gelu, dispatches\n"
        "x, bias = torch.randn(3, 5), torch.randn(5)\n"
        "torch.testing.assert_close(bias_gelu(x, bias), torch.nn.functional.gelu(x + bias))\n"
        "print(ivcl_fast.__file__, _ext.ISA, dict(dispatches()))\n"
    )
    said = python(["-c", code], tmp_path, PYTHONPATH=str(tmp_path / "site"))
    file = tmp_path / "site" / "ivcl_fast" / "__init__.py"
    assert said == f"{file} {isa} {{('bias_gelu', 'cpp'): 1}}\n"


# --- Empty environments ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pure_wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, tmp_path_factory.mktemp("pure") / "out", IVCL_FAST_BUILD="none")[0]


def environment(folder: Path, wheel: Path, *packages: str) -> Path:
    """The Python of a new environment: the wheel, and links to packages and what they require."""
    python(["-m", "venv", "--without-pip", str(folder)], folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    for name in required(*packages):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


def required(*packages: str) -> set[str]:
    """The packages, those that they require, and so on, as far as they are installed here."""
    found, todo = set(), list(packages)
    while todo:
        name = todo.pop()
        try:
            requirements = map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            todo += [
                r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})
            ]
        found.add(name)
    return found


def run(executable: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    command = [str(executable), *arguments]
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)


ALONE = """
import importlib.util
for name in ("tyro", "rich", "matplotlib", "tensorboard", "av", "einops", "PIL", "safetensors"):
    assert importlib.util.find_spec(name) is None, name
import torch
import ivcl_fast.kernels as kernels
x, bias = torch.randn(2, 3, requires_grad=True), torch.randn(3)
kernels.bias_gelu(x, bias).sum().backward()
assert x.grad.isfinite().all()
"""


def test_kernels_need_pytorch_and_numpy_alone_and_commands_name_their_extra(pure_wheel, tmp_path):
    executable = environment(tmp_path / "environment", pure_wheel, "torch", "numpy")
    done = run(executable, "-c", ALONE, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for command in ("train", "info"):
        done = run(executable, "-m", f"ivcl_fast.{command}", folder=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert "tyro" in done.stderr and "ivcl_fast[train]" in done.stderr


def test_an_installed_copy_is_no_checkout_whatever_lies_beside_it(pure_wheel, tmp_path):
    """Hugging Face's package is called ``kernels``, and some packages install a ``setup.py``."""
    executable = environment(tmp_path / "environment", pure_wheel, "torch", "numpy")
    (site,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    for name in ("kernels/__init__.py", "setup.py"):
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).touch()
    code = "import ivcl_fast, ivcl_fast.kernels; print(ivcl_fast.__version__, *ivcl_fast.__path__)"
    done = run(executable, "-c", code, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [VERSION, str(site / "ivcl_fast")]


PROGRAM = """\
from ivcl_fast import IVCLConfig, kernels
cfg = IVCLConfig.preset("tiny")
slots: int = cfg.num_slots
wrong: str = cfg.num_slots
reveal_type(kernels.bias_gelu)
"""


def test_a_users_mypy_sees_types(pure_wheel, tmp_path):
    """Without PyTorch beside it, whose types take long to read: here a tensor is anything."""
    pytest.importorskip("mypy")
    executable = environment(tmp_path / "environment", pure_wheel)
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["--python-executable", str(executable), "--cache-dir", str(tmp_path / "cache")]
    done = run(Path(sys.executable), "-m", "mypy", *options, "program.py", folder=tmp_path)
    told = [line for line in done.stdout.splitlines() if line.startswith("program.py:")]
    assert len(told) == 2, done.stdout + done.stderr
    assert told[0].startswith("program.py:4: error: Incompatible types in assignment")
    assert told[1].startswith(
        'program.py:5: note: Revealed type is "def (x: Any, bias: Any, approximate: '
    )
