"""``python -m ivcl_fast COMMAND``, also installed as ``ivcl-fast``: run or list the commands."""

from __future__ import annotations

import runpy
import sys

import ivcl_fast
from ivcl_fast.errors import print_error

COMMANDS = {
    "demo": "Watch a packaged model answer for a video, in a browser.",
    "train": "Pretrain, finetune and evaluate a model, and write a report.",
    "evaluate": "Evaluate a finished run again, or predict answers for new videos.",
    "visualize": "Show where a run's slots attend, and what its model answers, as a web page.",
    "probes": "Score linear probes of a run's frozen slots.",
    "compare": "Compare finished runs clip by clip, and list the settings that differ.",
    "sweep": "Run a study: several variants and seeds, compared in one table.",
    "prepare": "Decode a data set into a frame store, or make a synthetic data set.",
    "export": "Write a run's models as ONNX or torch.export files.",
    "info": "Show versions, devices, kernels and attention backends, and what is missing.",
}
"""Commands and their one-line descriptions."""


def main() -> None:
    """Run the command named by the first argument, list the commands, or print the version."""
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
