"""The page with every flag of every command: what each of them prints for ``--help``."""

from __future__ import annotations

import io
import os
import runpy
import sys
import warnings
from contextlib import redirect_stdout, suppress
from unittest.mock import patch

from ivcl_fast.__main__ import COMMANDS

INTRODUCTION = """\
# Every flag of every command

What `python -m ivcl_fast.COMMAND --help` shows; `ivcl-fast COMMAND` is another way to type
`python -m ivcl_fast.COMMAND`. Dashes and underscores in a flag's name are the same.
"""


def commands() -> list[str]:
    """Return the names of the commands."""
    return [*COMMANDS]


def help_of(command: str) -> str:
    """Return what ``python -m ivcl_fast.<command> --help`` prints."""
    module = f"ivcl_fast.{command}"
    with (
        warnings.catch_warnings(action="ignore"),
        patch.dict(os.environ, COLUMNS="100"),
        patch.object(sys, "argv", [module, "--help"]),
        redirect_stdout(io.StringIO()) as printed,
        suppress(SystemExit),
    ):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return printed.getvalue().strip()


def page() -> str:
    """Return the whole page, in Markdown."""
    sections = (f"## {name}\n\n```text\n{help_of(name)}\n```\n" for name in commands())
    return "\n".join([INTRODUCTION, *sections])
