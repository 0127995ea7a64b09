"""``python -m ivcl_fast`` lists the commands."""

from __future__ import annotations

import sys

import ivcl_fast
from ivcl_fast.command import run_command
from ivcl_fast.errors import UserError

COMMANDS = {
    "train": "Pretrain, finetune and evaluate a model, and write a report.",
    "evaluate": "Measure a finished run again, or answer the question for new videos.",
    "visualize": "Show where a run's slots attend, and what its model believes, as a web page.",
    "probes": "Measure what linear probes can read from a run's frozen slots.",
    "sweep": "Run a study: several variants and seeds, compared in one table.",
    "prepare": "Decode a data set into a frame store, or make a synthetic data set.",
    "export": "Write a run's models as ONNX or torch.export files.",
    "info": "Show versions, devices, kernels and attention backends, and what is missing.",
}
"""The commands, each with one line about it."""


def main() -> None:
    """List the commands, or print the version."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"ivcl_fast {ivcl_fast.__version__}")
    elif arguments in ([], ["-h"], ["--help"]):
        print("usage: python -m ivcl_fast.COMMAND [--help] [--version] ...\n\ncommands:")
        for name, line in COMMANDS.items():
            print(f"  {name:<10} {line}")
    else:
        accepted = ", ".join(f"python -m ivcl_fast.{name}" for name in COMMANDS)
        raise UserError(f"{arguments[0]!r} is not accepted; accepted: --version, {accepted}")


if __name__ == "__main__":
    run_command(main)
