"""``python -m ivcl_fast COMMAND``, also installed as ``ivcl-fast``: run or list the commands."""

from __future__ import annotations

import runpy
import sys

import ivcl_fast
from ivcl_fast.errors import print_error

COMMANDS = {
    "train": "Pretrain, finetune and evaluate a model, and write a report.",
    "evaluate": "Measure a finished run again, or answer the question for new videos.",
    "visualize": "Show where a run's slots attend, and what its model answers, as a web page.",
    "probes": "Measure what linear probes can read from a run's frozen slots.",
    "compare": "Compare finished runs clip by clip, and list the settings that differ.",
    "sweep": "Run a study: several variants and seeds, compared in one table.",
    "prepare": "Decode a data set into a frame store, or make a synthetic data set.",
    "export": "Write a run's models as ONNX or torch.export files.",
    "info": "Show versions, devices, kernels and attention backends, and what is missing.",
}
"""The commands, each with one line about it."""


def main() -> None:
    """Run the command that the first argument names, list the commands, or print the version."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv = [name, *arguments]
        runpy.run_module(f"ivcl_fast.{name}", run_name="__main__", alter_sys=True)
    elif name == "--version":
        print(f"ivcl_fast {ivcl_fast.__version__}")
    elif name in ("-h", "--help"):
        print("usage: python -m ivcl_fast COMMAND [--help] [--version] ...\n\ncommands:")
        for name, line in COMMANDS.items():
            print(f"  {name:<10} {line}")
    else:
        print_error(f"COMMAND: expected one of {', '.join(COMMANDS)}, got {name!r}")
        raise SystemExit(2)


if __name__ == "__main__":
    main()
