"""``make aot``: compile every Triton kernel for several chips, with several versions of Triton.

Compiles the kernels of a training step at every preset's shapes, in bfloat16 and float32, and reads
registers, spills, tensor-core instructions and register hazards from the machine code. Writes a row
per op and version to ``benchmarks/results/aot.json`` and ``docs/results/aot.md``; exits with an
error that lists the faults if there are any. No GPU is needed.

Two versions of Triton cannot live in one process: each ``--triton`` names a folder with another one
(``pip install --no-deps --target DIR 'triton==3.6.*'``), which compiles in a process of its own.
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
from typing import Any, NamedTuple

import torch

from benchmarks.aot.cases import cases
from benchmarks.aot.compile import CHIPS, Compiled, compile_launch, digest, faults
from benchmarks.results import RESULTS, ROOT
from benchmarks.summary import lined_up
from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.files import write_text
from ivcl_fast.kernels._triton import INTERPRET, MISSING, triton
from ivcl_fast.kernels.launch import Launch, record

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TABLE = ROOT / "docs" / "results" / "aot.md"


class Build(NamedTuple):
    """A launch of a training step, to be compiled for one chip."""

    name: str
    """Op, place in the model, kernel, setting and dtype."""
    arch: int
    launch: Launch


def settings() -> dict[str, IVCLConfig]:
    """Return the configurations whose kernels are compiled: the presets, and the GPU target's."""
    presets = {preset: IVCLConfig.preset(preset) for preset in PRESETS}
    target = IVCLConfig.preset("base64", mask_ratio=0.875, num_query_frames=1)
    return {**presets, "base64, mask 0.875, 1 query frame": target}


def builds(
    configs: dict[str, IVCLConfig] | None = None,
    dtypes: Iterable[str] = tuple(DTYPES),
    archs: Iterable[int] = tuple(CHIPS),
) -> Iterator[Build]:
    """Yield the launches of training steps; of those that compile alike for a chip, the first."""
    seen = set()
    for setting, config in (configs or settings()).items():
        for dtype in dtypes:
            for name, call in cases(config, DTYPES[dtype]).items():
                for arch in archs:
                    with record(arch) as recorded:
                        call()
                    for launch in recorded:
                        key = digest(launch), arch
                        if key not in seen:
                            seen.add(key)
                            step = launch.kernel.__name__.removesuffix("_kernel").strip("_")
                            yield Build(f"{name} {step}, {setting}, {dtype}", arch, launch)


def compile_all(wanted: Iterable[Build]) -> Iterator[tuple[Build, Compiled]]:
    """Compile on all cores of this machine."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(build, pool.submit(compile_launch, build.launch, build.arch)) for build in wanted]
        for build, job in jobs:
            yield build, job.result()


def compile_everything(archs: Iterable[int]) -> dict[str, Any]:
    """Compile with the installed Triton; return its version, a row per op, and the faults."""
    by_op: dict[str, list[Compiled]] = {}
    found = []
    for build, built in compile_all(builds(archs=archs)):
        by_op.setdefault(build.name.split(",")[0].split()[0], []).append(built)
        place = f"{build.name}, sm_{build.arch}, Triton {triton.__version__}"
        found += [f"{place}: {fault}" for fault in faults(build.launch, built)]
    rows = {op: summary_of(compiled) for op, compiled in sorted(by_op.items())}
    return {"triton": triton.__version__, "chips": sorted(archs), "ops": rows, "faults": found}


def summary_of(builds: list[Compiled]) -> dict[str, Any]:
    """Return the figures of all builds of an op: ranges, or the worst."""
    registers = [built.registers for built in builds]
    hopper = [round(100 * built.occupancy) for built in builds if built.arch == 90] or [0]
    return {
        "builds": len(builds),
        "registers": [min(registers), max(registers)],
        "spills": sum(built.spills for built in builds),
        "hazards": sum(built.hazards for built in builds),
        "shared bytes": max(built.shared for built in builds),
        "widest store": min(built.store_bytes for built in builds),
        "occupancy on sm_90": [min(hopper), max(hopper)],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the page: a row for each version of Triton and op."""
    head = ["Triton", "op", *next(iter(results[0]["ops"].values()))]
    body = [
        [result["triton"], op, *(_cell(value) for value in row.values())]
        for result in results
        for op, row in result["ops"].items()
    ]
    chips = ", ".join(f"sm_{arch}" for arch in results[0]["chips"])
    wrong = sum(len(result["faults"]) for result in results)
    return "\n".join(
        [
            "# Machine code of the Triton kernels",
            "",
            f"Written by `make aot` with torch {torch.__version__} for {chips}: every kernel of a "
            "training step, all presets, bfloat16 and float32, 8 clips. Registers are per thread; "
            "occupancy is the percentage of a multiprocessor's warps that can be resident at once; "
            "the widest store is the least over all builds, in bytes per thread. "
            f"Faults: {wrong}.",
            "",
            *lined_up(head, body),
            "",
        ]
    )


def _cell(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


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
        "--chips", default=",".join(map(str, CHIPS)), help="compute capabilities (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the results; write no file")
    args = parser.parse_args()
    if INTERPRET or MISSING:
        parser.error(MISSING or "cannot compile under TRITON_INTERPRET=1; unset it")
    for folder in args.triton:
        if not (folder / "triton").is_dir():
            parser.error(f"--triton: expected a folder with Triton, got {folder}")
    archs = [int(chip) for chip in args.chips.split(",")]
    if unknown := {*archs} - {*CHIPS}:
        parser.error(f"--chips: expected {', '.join(map(str, CHIPS))}, got {unknown.pop()}")
    if args.json:
        print(json.dumps(compile_everything(archs)))
        return
    results = []
    for folder in [*args.triton, None]:
        first = [] if folder is None else [str(folder.resolve())]
        path = os.pathsep.join([*first, str(ROOT), *filter(None, sys.path)])
        command = [sys.executable, "-m", "benchmarks.aot", "--json", "--chips", args.chips]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, check=True
        )
        results.append(json.loads(done.stdout))
        last = results[-1]
        count = sum(row["builds"] for row in last["ops"].values())
        print(f"Triton {last['triton']}: {count} builds, {len(last['faults'])} faults", flush=True)
    write_text(RESULTS / "aot.json", json.dumps(results, indent=1) + "\n")
    write_text(TABLE, table(results))
    sys.exit("\n".join(fault for result in results for fault in result["faults"]) or None)


if __name__ == "__main__":
    main()
