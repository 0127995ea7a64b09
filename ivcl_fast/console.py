"""How a command starts: as ``ivcl-fast-train`` or as ``python -m ivcl_fast.train``."""

from __future__ import annotations

import runpy
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("tyro", "rich", "matplotlib", "tensorboard")
"""What the extra ``train`` installs, and every command imports."""


def check_packages() -> None:
    """End the process with one line on stderr and status 2 if packages of the extra are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"error: commands need {', '.join(missing)}; install them with: "
            "pip install 'ivcl_fast[train]'",
            file=sys.stderr,
        )
        raise SystemExit(2)


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the process at once, while it imports a command: there is nothing to save.

    ``ivcl_fast.command.run_command`` turns it into a KeyboardInterrupt again.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def check_started_module() -> None:
    """Do what a command begins with if Python is about to run one, such as ivcl_fast.train.

    To be called while ``sys.argv`` still begins with ``-m``, in place of the module's path.
    """
    started = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    package, _, command = started.partition(".")
    if package == "ivcl_fast" and command and "." not in command:
        end_at_ctrl_c()
        check_packages()


def run_script() -> None:
    """Run the command that the console script is named after.

    ``ivcl-fast-train ...`` does what ``python -m ivcl_fast.train ...`` does.
    """
    end_at_ctrl_c()
    check_packages()
    command = Path(sys.argv[0]).stem.removeprefix("ivcl-fast-")
    runpy.run_module(f"ivcl_fast.{command}", run_name="__main__", alter_sys=True)
