"""Where the packages lie, and how the C++ objects are built; the rest is in pyproject.toml.

``kernels/`` stands at the top of the checkout but is installed as ``ivcl_fast.kernels``: a
top-level ``kernels`` would shadow another library's name.

With torch and a C++ compiler at hand (``pip install --no-build-isolation .``), ``csrc/`` is built
against torch's stable ABI: one object for each instruction set, all in one wheel for any torch
from 2.11 on and any Python from 3.11 on. Without, the wheel is pure Python.
``CXX`` and ``MAX_JOBS`` are respected.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

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


def flags(isa: str) -> list[str]:
    """How to compile a source for an instruction set."""
    import torch

    digest = OBJECTS["digest"](ROOT / "csrc")
    return [
        "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi",
        "-Wno-unknown-pragmas", *FLAGS[isa],
        f"-I{Path(torch.__file__).parent / 'include'}",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",  # 2.11
        f'-DIVCL_SOURCES="{digest}"',
        *shlex.split(os.environ.get("IVCL_FAST_CXXFLAGS", "")),  # e.g. sanitizers
    ]  # fmt: skip


def buildable() -> list[str]:
    """The instruction sets that can be built for, none if there is no torch or no compiler."""
    try:
        import torch
    except ImportError:
        return []
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 11) or sys.platform != "linux" or not compiler():
        return []
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    wanted = [isa for isa in OBJECTS["ISAS"] if x86 != (isa == "generic")]
    probe = [*compiler(), "-fsyntax-only", str(ROOT / "csrc" / "ops.cpp")]
    return [
        i for i in wanted if not subprocess.run([*probe, *flags(i)], capture_output=True).returncode
    ]


class BuildObjects(build_ext):
    """Compiles the same sources for every instruction set, several at a time."""

    def build_extensions(self) -> None:
        import torch

        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        steps, links = [], []
        for extension in self.extensions:
            isa = extension.name.rpartition(OBJECTS["module"](""))[2]
            folder = Path(self.build_temp) / isa
            folder.mkdir(parents=True, exist_ok=True)
            made = [str(folder / f"{Path(source).stem}.o") for source in extension.sources]
            steps += [
                [*compiler(), *flags(isa), "-c", source, "-o", out]
                for source, out in zip(extension.sources, made, strict=True)
            ]
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            library = Path(torch.__file__).parent / "lib"
            extra = shlex.split(os.environ.get("IVCL_FAST_CXXFLAGS", ""))
            links.append(
                [
                    *compiler(),
                    "-shared",
                    *extra,
                    *made,
                    f"-L{library}",
                    "-ltorch_cpu",
                    "-o",
                    str(target),
                ]
            )
        with ThreadPoolExecutor(jobs) as pool:
            for stage in (steps, links):
                list(pool.map(subprocess.check_call, stage))


extensions = [
    Extension(
        f"ivcl_fast.kernels.{OBJECTS['module'](isa)}", SOURCES, py_limited_api=True, language="c++"
    )
    for isa in buildable()
]
setup(
    packages=[*find_packages(include=["ivcl_fast", "ivcl_fast.*"]), "ivcl_fast.kernels"],
    package_dir={"ivcl_fast": "ivcl_fast", "ivcl_fast.kernels": "kernels"},
    ext_modules=extensions,
    cmdclass={"build_ext": BuildObjects},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
