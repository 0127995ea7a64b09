"""The builds of every kernel for several chips, and the figures of those that were compiled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...config import PRESETS, IVCLConfig
from ...files import write_text
from .._triton import triton
from ..launch import Launch, record
from .cases import cases
from .compile import CHIPS, Compiled, compile_launch, digest, faults

RESULTS = Path("benchmarks/results/aot.json")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TARGET = "base64, mask 0.875, 1 query frame"
"""The setting for which the speed of training is stated."""


class Build(NamedTuple):
    """A launch of a training step, to be compiled for one chip."""

    setting: str
    """The preset, or what differs from it."""
    dtype: str
    """Of activations: a key of ``DTYPES``."""
    name: str
    arch: int
    launch: Launch
    digest: str


Figures = dict[str, dict[str, dict[str, Any]]]
"""Figures of :class:`Compiled` by version of Triton, digest of the launch, and chip."""


def settings() -> dict[str, IVCLConfig]:
    """The configurations whose kernels are compiled."""
    presets = {preset: IVCLConfig.preset(preset) for preset in PRESETS}
    return {**presets, TARGET: IVCLConfig.preset("base64", mask_ratio=0.875, num_query_frames=1)}


def builds(
    version: str | None = None,
    dtypes: Iterable[str] = tuple(DTYPES),
    archs: Iterable[int] = tuple(CHIPS),
    configs: dict[str, IVCLConfig] | None = None,
) -> Iterator[Build]:
    """The launches of training steps; of those that compile alike for a chip, the first.

    ``version`` is the Triton that would compile them, by default the installed one.
    """
    seen = set()
    for setting, config in (configs or settings()).items():
        for dtype in dtypes:
            for name, call in cases(config, DTYPES[dtype]).items():
                for arch in archs:
                    with record(arch, version) as recorded:
                        call()
                    for launch in recorded:
                        step = launch.kernel.__name__.removesuffix("_kernel").strip("_")
                        build = Build(
                            setting, dtype, f"{name} {step}".strip(), arch, launch, digest(launch)
                        )
                        if (build.digest, arch) not in seen:
                            seen.add((build.digest, arch))
                            yield build


def compile_all(wanted: Iterable[Build]) -> Iterator[tuple[Build, Compiled]]:
    """Compile on all cores of this machine."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(build, pool.submit(compile_launch, build.launch, build.arch)) for build in wanted]
        for build, job in jobs:
            yield build, job.result()


def compiled_figures(figures: Figures, build: Build, version: str) -> Compiled | None:
    """The kept figures of a build by one Triton, or None if it has not been compiled."""
    found = figures.get(version, {}).get(build.digest, {}).get(str(build.arch))
    return None if found is None else Compiled(arch=build.arch, **found)


def read_figures() -> Figures:
    """The figures kept so far; empty if there are none."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write_figures(figures: Figures) -> None:
    """Write a line for each launch, so that a change is seen as one."""
    versions = []
    for version, launches in sorted(figures.items()):
        lines = (f'  "{key}": {json.dumps(chips)}' for key, chips in sorted(launches.items()))
        versions.append(f' "{version}": {{\n' + ",\n".join(lines) + "\n }")
    write_text(RESULTS, "{\n" + ",\n".join(versions) + "\n}\n")


def compile_missing() -> None:
    """Compile with the installed Triton what it has not compiled yet; drop what is outdated."""
    version, figures, wanted = triton.__version__, read_figures(), list(builds())
    old = figures.get(version, {})
    figures[version] = {}
    missing = []
    for build in wanted:
        if chips := old.get(build.digest, {}).get(str(build.arch)):
            figures[version].setdefault(build.digest, {})[str(build.arch)] = chips
        else:
            missing.append(build)
    for done, (build, compiled) in enumerate(compile_all(missing), start=1):
        chip = {k: v for k, v in asdict(compiled).items() if k != "arch"}
        figures[version].setdefault(build.digest, {})[str(build.arch)] = chip
        if done % 50 == 0:  # what is interrupted goes on from here
            write_figures(figures)
            print(f"triton {version}: {done} of {len(missing)} compiled", flush=True)
    write_figures(figures)


def keep_versions(*versions: str) -> Figures:
    """Drop the figures of all other versions of Triton, and return what is left.

    Nothing compiles with those any more, so their figures would stay as kernels change.
    """
    figures = {version: kept for version, kept in read_figures().items() if version in versions}
    write_figures(figures)
    return figures


def all_faults(figures: Figures) -> list[str]:
    """What is wrong with the kept figures, by setting, kernel, chip and Triton."""
    found = []
    for version in figures:
        for build in builds(version):
            compiled = compiled_figures(figures, build, version)
            place = f"{build.setting}, {build.dtype}, {build.name}, sm_{build.arch}, {version}"
            wrong = ["not compiled"] if compiled is None else faults(build.launch, compiled)
            found += [f"{place}: {fault}" for fault in wrong]
    return found
