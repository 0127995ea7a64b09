"""``make aot``: compile every Triton kernel for several chips, with several versions of Triton.

Compiles the kernels of a training step at every preset's shapes, in bfloat16 and float32, and reads
registers, spills, tensor-core instructions and register hazards from the machine code. Writes a row
per op and version to ``docs/results/aot.md``; exits with an error that lists the faults if there
are any. No GPU is needed.

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
from typing import Any, NamedTuple

import torch

from benchmarks.aot.cases import cases
from benchmarks.aot.compile import CHIPS, Compiled, compile_launch, faults, source
from benchmarks.results import ROOT
from benchmarks.tables import lined_up
from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.files import write_text
from ivcl_fast.kernels._triton import INTERPRET, MISSING, triton
from ivcl_fast.kernels.launch import Launch, record

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TABLE = ROOT / "docs" / "results" / "aot.md"
HEAD = ("Triton", "op", "builds", "registers", "spills", "hazards", "shared bytes", "widest store")


class Build(NamedTuple):
    """A kernel launch of a training step, to compile for one chip."""

    name: str
    """Op, place in the model, kernel, setting and dtype."""
    arch: int
    launch: Launch


def settings() -> dict[str, IVCLConfig]:
    """Return the configurations to compile: the presets, and that of the GPU target."""
    presets = {preset: IVCLConfig.preset(preset) for preset in PRESETS}
    target = IVCLConfig.preset("base64", mask_ratio=0.875, num_query_frames=1)
    return {**presets, "base64, mask 0.875, 1 query frame": target}


def builds(
    configs: dict[str, IVCLConfig], dtypes: Iterable[str], archs: Iterable[int]
) -> Iterator[Build]:
    """Yield the launches of training steps, without those that compile alike for a chip."""
    seen = set()
    for setting, config in configs.items():
        for dtype in dtypes:
            for name, call in cases(config, DTYPES[dtype]).items():
                for arch in archs:
                    with record(arch) as recorded:
                        call()
                    for launch in recorded:
                        key = source(launch).hash(), str(launch.options), arch
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
    """Compile with the installed Triton; return the table's rows and the faults."""
    by_op: dict[str, list[Compiled]] = {}
    found = []
    for build, built in compile_all(builds(settings(), DTYPES, archs)):
        by_op.setdefault(build.name.partition(",")[0].split()[0], []).append(built)
        place = f"{build.name}, sm_{build.arch}, Triton {triton.__version__}"
        found += [f"{place}: {fault}" for fault in faults(build.launch, built)]
    return {"rows": [row(op, by_op[op]) for op in sorted(by_op)], "faults": found}


def row(op: str, built: list[Compiled]) -> list[str]:
    """Summarise all builds of an op in a row of the table: sums, ranges, or the worst."""
    registers = [one.registers for one in built]
    return [
        triton.__version__,
        op,
        str(len(built)),
        f"{min(registers)} to {max(registers)}",
        str(sum(one.spills for one in built)),
        str(sum(one.hazards for one in built)),
        str(max(one.shared for one in built)),
        str(min(one.store_bytes for one in built)),
    ]


def page(rows: list[list[str]], archs: list[int], num_faults: int) -> str:
    """Return the page with the table."""
    chips = ", ".join(f"sm_{arch}" for arch in archs)
    text = (
        f"Written by `make aot` with torch {torch.__version__} for {chips}: every kernel of a "
        "training step, all presets, bfloat16 and float32, 8 clips. Registers are per thread; the "
        "widest store is the least over all builds, in bytes per thread. "
        f"Faults: {num_faults}."
    )
    table = "\n".join(lined_up(HEAD, rows))
    return f"# Machine code of the Triton kernels\n\n{text}\n\n{table}\n"


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
        help="compute capabilities (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results; write no file")
    args = parser.parse_args()
    if INTERPRET or MISSING:
        parser.error(MISSING or "cannot compile under TRITON_INTERPRET=1; unset it")
    for folder in args.triton:
        if not (folder / "triton").is_dir():
            parser.error(f"--triton: expected a folder with Triton, got {folder}")
    if args.json:
        print(json.dumps(compile_everything(args.chips)))
        return
    rows, found = [], []
    for folder in [*args.triton, None]:
        first = [] if folder is None else [str(folder.resolve())]
        path = os.pathsep.join([*first, str(ROOT), *filter(None, sys.path)])
        command = [sys.executable, "-m", "benchmarks.aot", "--json", "--chips"]
        done = subprocess.run(
            [*command, *map(str, args.chips)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            check=True,
        )
        results = json.loads(done.stdout)
        rows += results["rows"]
        found += results["faults"]
        print(f"Triton {rows[-1][0]}: {len(results['faults'])} faults", flush=True)
    write_text(TABLE, page(rows, args.chips, len(found)))
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
