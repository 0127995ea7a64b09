"""``make aot``: compile every Triton kernel for several chips, with several versions of Triton.

Compiles the kernels of a training step at every preset's shapes, in bfloat16 and float32, and reads
registers, spills, tensor-core instructions and register hazards from the machine code. Writes a row
per chip, version and op to ``benchmarks/results/aot.json``, one chip and version after the other;
exits with an error that lists the faults if there are any. No GPU is needed.

Two versions of Triton cannot live in one process: each ``--triton`` gives a folder with another one
(``pip install --no-deps --target DIR 'triton==3.6.*'``), which compiles in a separate process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.aot.cases import cases
from benchmarks.aot.compile import CHIPS, Compiled, compile_launch, faults, source
from benchmarks.results import RESULTS, ROOT, Results, Row
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


def rows_for(arch: int) -> list[Row]:
    """Compile every launch for a chip with the installed Triton; return a row per op."""
    by_op: dict[str, list[tuple[Build, Compiled]]] = {}
    for build, built in compile_all(builds(settings(), DTYPES, arch)):
        by_op.setdefault(build.op, []).append((build, built))
    return [summary(op, arch, by_op[op]) for op in sorted(by_op)]


def summary(op: str, arch: int, found: list[tuple[Build, Compiled]]) -> Row:
    """Summarise all builds of an op: sums, or the largest or smallest value."""
    built = [one for _, one in found]
    return {
        "benchmark": f"sm_{arch}, Triton {triton.__version__}",
        "name": op,
        "builds": len(built),
        "most_registers": max(one.registers for one in built),
        "spills": sum(one.spills for one in built),
        "hazards": sum(one.hazards for one in built),
        "most_shared_bytes": max(one.shared for one in built),
        "narrowest_store_bytes": min(one.store_bytes for one in built),
        "faults": [
            f"{build.name}: {text}" for build, one in found for text in faults(build.launch, one)
        ],
    }


def compile_with(folder: Path | None, arch: int) -> list[Row]:
    """Compile for a chip in a separate process, with a folder's Triton or the installed one."""
    first = [] if folder is None else [str(folder.resolve())]
    path = os.pathsep.join([*first, str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aot", "--rows", "--chips", str(arch)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--triton", type=Path, action="append", default=[], metavar="DIR",
        help="folder with another version of Triton, to compile with as well; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--chips", type=int, nargs="+", default=[*CHIPS], choices=[*CHIPS], metavar="CHIP",
        help="compute capabilities, in this order (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--rows", action="store_true", help="print the rows; write no file")
    args = parser.parse_args()
    if INTERPRET or MISSING:
        parser.error(MISSING or "cannot compile under TRITON_INTERPRET=1; unset it")
    for folder in args.triton:
        if not (folder / "triton").is_dir():
            parser.error(f"--triton: expected a folder with Triton, got {folder}")
    if args.rows:
        print(json.dumps([row for arch in args.chips for row in rows_for(arch)]))
        return
    results = Results("make aot", machine={"packages": {"torch": torch.__version__}})
    for arch in args.chips:
        for folder in [None, *args.triton[::-1]]:  # newest first
            rows = compile_with(folder, arch)
            results.rows += rows
            results.write(RESULTS / "aot.json")
            found = sum(len(row["faults"]) for row in rows)
            print(f"{rows[0]['benchmark']}: {found} faults", flush=True)
    every = [f"{row['benchmark']}, {fault}" for row in results.rows for fault in row["faults"]]
    sys.exit("\n".join(every) or None)


if __name__ == "__main__":
    main()
