"""Where the packages are, and how the C++ objects are built; the rest is in pyproject.toml.

``kernels/`` is at the top of the checkout but is installed as ``ivcl_fast.kernels``: a top-level
``kernels`` would shadow another library's name.

With torch and a C++ compiler (``pip install --no-build-isolation .``), ``csrc/`` is built against
torch's stable ABI: one object for each instruction set, all in one wheel for any torch from 2.11 on
and any Python from 3.11 on. Without them the wheel is pure Python. An instruction set on which the
compiler fails is left out.

``CXX`` names the compiler, ``MAX_JOBS`` is the number of compilers that run at a time,
``IVCL_FAST_CXXFLAGS`` are flags to add, and ``IVCL_FAST_BUILD`` names the instruction sets to
build, or ``none``.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
OBJECTS = runpy.run_path(str(ROOT / "kernels" / "_objects.py"))
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))

AVX2 = ["-mavx2", "-mfma"]
AVX512 = [
    *AVX2,
    *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")),
    "-mprefer-vector-width=512",
]
FLAGS = {
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "avx512": AVX512,
    "avx2": AVX2,
    "generic": [],
}


def compiler() -> list[str]:
    """The C++ compiler's command, empty if there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = named or [name for name in ("g++", "c++", "clang++") if shutil.which(name)][:1]
    return found if found and shutil.which(found[0]) else []


def jobs() -> int:
    """The number of compilers that run at a time."""
    named = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not named.isdecimal() or int(named) < 1:
        sys.exit(f"MAX_JOBS: {named!r} is not a whole number from 1 on")
    return int(named)


def more_flags() -> list[str]:
    """The user's flags for compiling and linking, e.g. of sanitizers."""
    return shlex.split(os.environ.get("IVCL_FAST_CXXFLAGS", ""))


def flags(isa: str) -> list[str]:
    """The compiler's flags for an instruction set."""
    import torch

    digest = OBJECTS["digest"](ROOT / "csrc")
    return [
        "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi",
        "-Wno-unknown-pragmas", *FLAGS[isa],
        f"-I{Path(torch.__file__).parent / 'include'}",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",  # 2.11
        f'-DIVCL_SOURCES="{digest}"',
        *more_flags(),
    ]  # fmt: skip


def link(objects: list[str], target: str) -> list[str]:
    """The command that links compiled sources to a library."""
    import torch

    library = Path(torch.__file__).parent / "lib"
    extra = more_flags()
    return [*compiler(), "-shared", *extra, *objects, f"-L{library}", "-ltorch_cpu", "-o", target]


def unbuildable() -> str | None:
    """The reason why nothing can be built here, or None."""
    if sys.platform != "linux":
        return "they are for Linux"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "a free-threaded Python has no stable ABI"
    try:
        import torch
    except Exception as error:  # a torch that is broken counts as none
        return f"no torch beside the build ({error}); pip install --no-build-isolation shows it one"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        return f"torch {torch.__version__} is older than 2.11"
    if not compiler():
        return f"no C++ compiler: found no {os.environ.get('CXX') or 'g++, c++ or clang++'}"
    return None


def wanted() -> list[str]:
    """The instruction sets to build for on this kind of machine."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    known = [isa for isa in OBJECTS["ISAS"] if x86 != (isa == "generic")]
    named = os.environ.get("IVCL_FAST_BUILD", " ".join(known)).replace(",", " ").split()
    for name in named:
        if name not in (*known, "none"):
            sys.exit(f"IVCL_FAST_BUILD: {name!r} is not one of none, {', '.join(known)}")
    return [isa for isa in known if isa in named]


def failure(isa: str) -> str | None:
    """The compiler's error for the flags of an instruction set, or None."""
    command = [*compiler(), *flags(isa), "-fsyntax-only", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    said = done.stderr.strip().splitlines() or [f"it exits with {done.returncode}"]
    return said[0] if done.returncode else None


def buildable() -> list[str]:
    """The instruction sets to build for; says which are left out, and why."""
    isas, reason = wanted(), unbuildable()
    if isas and reason:
        print(f"ivcl_fast: no C++ kernels are built: {reason}", file=sys.stderr)
        return []
    failures = {isa: failure(isa) for isa in isas}
    for isa, reason in failures.items():
        if reason:
            print(f"ivcl_fast: no C++ kernels for {isa}: {reason}", file=sys.stderr)
    return [isa for isa in isas if not failures[isa]]


class BuildPackages(build_py):
    """Copies into an empty folder: files that an earlier build left would be installed as well."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "ivcl_fast", ignore_errors=True)
        super().run()


class BuildObjects(build_ext):
    """Compiles the same sources for every instruction set, several at a time.

    Every build writes to files of its own, so that several may run in a checkout at once.
    """

    def build_extensions(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with ThreadPoolExecutor(jobs()) as pool:
                compiled = {e.name: self.start(e, pool, Path(folder)) for e in self.extensions}
            for name, objects in compiled.items():
                target = Path(self.get_ext_fullpath(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                linked = target.with_name(f"{target.name}.{os.getpid()}")
                failed = any(status.result() for status in objects.values())
                if failed or subprocess.call(link([*objects], str(linked))):
                    for file in (linked, target):
                        file.unlink(missing_ok=True)
                    print(f"ivcl_fast: {name} is left out: the compiler failed", file=sys.stderr)
                else:
                    linked.replace(target)

    def start(
        self, extension: Extension, pool: ThreadPoolExecutor, folder: Path
    ) -> dict[str, Future[int]]:
        """Compiled file to the compiler's exit status, for every source."""
        isa = extension.name.rpartition(OBJECTS["module"](""))[2]
        (folder / isa).mkdir()
        common = [*compiler(), *flags(isa)]
        objects = {
            source: str(folder / isa / f"{Path(source).stem}.o") for source in extension.sources
        }
        return {
            made: pool.submit(subprocess.call, [*common, "-c", source, "-o", made])
            for source, made in objects.items()
        }


extensions = [
    Extension(
        f"ivcl_fast.kernels.{OBJECTS['module'](isa)}",
        SOURCES,
        py_limited_api=True,
        optional=True,  # may be left out
    )
    for isa in (() if {"egg_info", "dist_info", "sdist"} & {*sys.argv} else buildable())
]
setup(
    packages=[
        *find_packages(include=["ivcl_fast", "ivcl_fast.*"]),
        "ivcl_fast.kernels",
    ],
    package_dir={"ivcl_fast": "ivcl_fast", "ivcl_fast.kernels": "kernels"},
    package_data={
        "ivcl_fast": ["py.typed", "sample.avi", "pretrained/*/*"],
        "ivcl_fast.report": ["templates/*"],
    },
    ext_modules=extensions,
    cmdclass={"build_py": BuildPackages, "build_ext": BuildObjects},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
