"""How a command starts: as ``ivcl-fast-train`` or as ``python -m ivcl_fast.train``."""

from __future__ import annotations

import runpy
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("tyro", "rich", "matplotlib", "tensorboard")
"""What the extra ``train`` installs, and every command imports."""


def before_import() -> None:
    """Do what comes before a command is imported.

    Until then Ctrl-C ends the process at once: there is nothing to save.
    ``ivcl_fast.command.run_command`` turns it into a KeyboardInterrupt again. If packages of the
    extra are missing, the process ends with one line on stderr and status 2.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"error: commands need {', '.join(missing)}; install them with: "
            "pip install 'ivcl_fast[train]'",
            file=sys.stderr,
        )
        raise SystemExit(2)


def check_started_module() -> None:
    """Call :func:`before_import` if Python is about to run a command, such as ivcl_fast.train.

    To be called while ``sys.argv`` still begins with ``-m``, in place of the module's path.
    """
    started = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    package, _, command = started.partition(".")
    if package == "ivcl_fast" and command and "." not in command:
        before_import()


def run_script() -> None:
    """Run the command that the console script is named after.

    ``ivcl-fast-train ...`` does what ``python -m ivcl_fast.train ...`` does.
    """
    before_import()
    command = Path(sys.argv[0]).stem.removeprefix("ivcl-fast-")
    runpy.run_module(f"ivcl_fast.{command}", run_name="__main__", alter_sys=True)
