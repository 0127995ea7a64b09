"""Ahead-of-time compilation of every Triton kernel for six chips, by two versions of Triton.

``python -m ivcl_fast.kernels.aot`` compiles the kernels of a training step at every preset's
shapes, in bfloat16 and in float32, for sm_80, 86, 89, 90, 100 and 120, with the installed Triton
and with the oldest supported one. It writes the figures to ``benchmarks/results/aot.json``, a table
of all kernels to ``benchmarks/results/aot.md`` and a summary to ``docs/kernel_notes.md``, and fails
if it finds a fault. No GPU is needed.

Figures are kept by a digest of what the machine code depends on, so only what changed is compiled.
Two versions of Triton cannot live in one process: ``--oldest`` names a folder with the oldest one
(``pip install --target``), which compiles in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from .._triton import INTERPRET, MISSING, triton
from .builds import all_faults, compile_missing, keep_versions
from .report import write_report

OLDEST_FOLDER = Path(".triton-oldest")


def main() -> None:
    parser = argparse.ArgumentParser(
        f"python -m {__package__}", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--oldest", type=Path, default=OLDEST_FOLDER, metavar="DIR",
        help="folder with the oldest supported Triton (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--only-compile", action="store_true", help="write no report")
    args = parser.parse_args()
    if INTERPRET or MISSING:
        sys.exit(f"aot: {MISSING or 'cannot compile under TRITON_INTERPRET=1; unset it'}")
    if not args.only_compile and not (args.oldest / "triton").is_dir():
        sys.exit(f"aot: --oldest {args.oldest} holds no Triton; make aot installs it there")
    compile_missing()
    if args.only_compile:
        return
    path = os.pathsep.join([str(args.oldest.resolve()), *filter(None, sys.path)])
    command = [sys.executable, "-m", __package__, "--only-compile"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)
    (oldest,) = (d.version for d in distributions(path=[str(args.oldest)]) if d.name == "triton")
    figures = keep_versions(triton.__version__, oldest)
    write_report(figures)
    sys.exit("\n".join(all_faults(figures)) or None)


if __name__ == "__main__":
    main()
