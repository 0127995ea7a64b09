"""``make aot``: compile every Triton kernel for several chips, with several versions of Triton.

Compiles the kernels of a training step at every preset's shapes, in bfloat16 and float32, and reads
registers, spills, tensor-core instructions and register hazards from the machine code. Exits with
an error that lists the faults if there are any. No GPU is needed.

``PYTHONPATH=DIR`` compiles with another version of Triton, from ``pip install --no-deps --target
DIR 'triton==3.6.*'``; ``make aot`` does so for several.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from benchmarks.aot.cases import cases
from benchmarks.aot.compile import CHIPS, Compiled, compile_launch, faults, source
from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.kernels._triton import INTERPRET, MISSING, triton
from ivcl_fast.kernels.launch import Launch, record

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Build(NamedTuple):
    """A kernel as a training step launches it, to be compiled for one GPU."""

    op: str
    name: str
    """Op, place in the model, kernel, setting and dtype."""
    arch: int
    launch: Launch


def settings() -> dict[str, IVCLConfig]:
    """Return the configurations to compile: the presets, and that of the GPU target."""
    presets = {preset: IVCLConfig.preset(preset) for preset in PRESETS}
    target = IVCLConfig.preset("base64", mask_ratio=0.875, num_query_frames=1)
    return {**presets, "base64, mask 0.875, 1 query frame": target}


def builds(configs: dict[str, IVCLConfig], dtypes: Iterable[str], arch: int) -> Iterator[Build]:
    """Yield the launches of training steps, without those that compile alike."""
    seen = set()
    for setting, config in configs.items():
        for dtype in dtypes:
            for name, call in cases(config, DTYPES[dtype]).items():
                with record(arch) as recorded:
                    call()
                for launch in recorded:
                    key = source(launch).hash(), str(launch.options)
                    if key not in seen:
                        seen.add(key)
                        op, step = name.partition(",")[0], launch.kernel.__name__
                        step = step.removesuffix("_kernel").removeprefix(f"{op}_")
                        yield Build(op, f"{name} {step}, {setting}, {dtype}", arch, launch)


def compile_all(wanted: Iterable[Build]) -> Iterator[tuple[Build, Compiled]]:
    """Compile on all cores of this process."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [(build, pool.submit(compile_launch, build.launch, build.arch)) for build in wanted]
        for build, job in jobs:
            yield build, job.result()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.aot", description=__doc__)
    parser.add_argument(
        "--chips", type=int, nargs="+", default=[*CHIPS], choices=[*CHIPS], metavar="CHIP",
        help="compute capabilities, in this order (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
    if INTERPRET or MISSING:
        parser.error(MISSING or "cannot compile under TRITON_INTERPRET=1; unset it")
    found = []
    for arch in args.chips:
        compiled = [*compile_all(builds(settings(), DTYPES, arch))]
        where = f"sm_{arch}, Triton {triton.__version__}"
        new = [
            f"{where}, {build.name}: {text}"
            for build, built in compiled
            for text in faults(build.launch, built)
        ]
        spills, hazards = (sum(getattr(b, of) for _, b in compiled) for of in ("spills", "hazards"))
        narrow = Counter(build.op for build, built in compiled if built.store_bytes < 16)
        print(
            f"{where}: {len(compiled)} builds, {spills} spills, {hazards} hazards, {len(new)} "
            f"faults; stores of under 16 bytes: {dict(narrow)}",
            flush=True,
        )
        found += new
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
