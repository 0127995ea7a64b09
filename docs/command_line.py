"""The page with every flag of every command, written from the parsers that the commands use.

``python docs/command_line.py`` prints it. A command is run with ``--help``, and the parser that it
builds is kept on the way, so that the page shows what the command accepts.
"""

from __future__ import annotations

import argparse
import inspect
import io
import re
import runpy
import sys
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tyro
from tyro.extras import get_parser

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# Every flag of every command

This page is generated from the commands' own parsers. `python -m ivcl_fast.COMMAND --help` shows
the same in a terminal, and `ivcl-fast-COMMAND` is another way to type `python -m
ivcl_fast.COMMAND`. Dashes and underscores in a flag's name are the same.
"""


def commands() -> list[str]:
    """Names of the commands, in the order of the console scripts in ``pyproject.toml``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [script.removeprefix("ivcl-fast-") for script in project["scripts"]]


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of ``python -m ivcl_fast.<command>``: the last one that it gives to tyro."""
    parsers: list[argparse.ArgumentParser] = []
    accepted = inspect.signature(get_parser).parameters
    parse = tyro.cli

    def keep_parser(function: Any, *args: Any, **options: Any) -> Any:
        known = {name: value for name, value in options.items() if name in accepted}
        parsers.append(get_parser(function, **known))
        return parse(function, *args, **options)

    module = f"ivcl_fast.{command}"
    with (
        warnings.catch_warnings(action="ignore"),
        patch.object(tyro, "cli", keep_parser),
        patch.object(sys, "argv", [module, "--help"]),
        redirect_stdout(io.StringIO()),
        suppress(SystemExit),
    ):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return parsers[-1]


def section(command: str) -> Iterator[str]:
    """Parts of a command's section: its description, and a table for each group of flags."""
    parser = parser_of(command)
    yield f"## {command}"
    yield inspect.cleandoc(parser.description or "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        title = (group.title or "options").replace("positional arguments", "arguments")
        if title != "options":
            yield f"### {command}: {title.removesuffix(' options')}"
        yield inspect.cleandoc(group.description or "")
        yield "\n".join(["| flag | default | meaning |", "|---|---|---|", *map(row, actions)])


def row(action: argparse.Action) -> str:
    """A flag's row of the table."""
    text = " ".join((action.help or "").split())
    told = DEFAULT.search(text)
    text = text.removesuffix(told[0]) if told else text
    switch = action.option_strings and action.nargs == 0
    default = (told[1] or told[2] if told else "") or ""
    if switch:
        default = {"True": "on", "False": "off"}.get(default, default)
    elif default not in ("required", ""):
        default = "" if default == "None" else f"`{default}`"
    takes = f" {metavar(action)}" if action.option_strings and not switch else ""
    if action.choices:  # they would make the first column wide
        text = f"{text} One of {', '.join(f'`{choice}`' for choice in action.choices)}."
        takes = ""
    names = action.option_strings or [action.dest.upper()]
    own = action.dest.rpartition(".")[2].replace("_", "-")
    names = sorted(names, key=lambda name: name.strip("-") != own)  # older spellings last
    flags = ", ".join(f"`{name}{takes}`" for name in names)
    return f"| {escaped(flags)} | {escaped(default)} | {escaped(text)} |"


DEFAULT = re.compile(r" ?\((?:default: ((?:[^()]|\([^()]*\))*)|(required|optional))\)$")
"""What tyro writes behind a flag's help."""


def metavar(action: argparse.Action) -> str:
    """What the flag takes, without tyro's note that None is accepted as well."""
    found = action.metavar
    return (" ".join(found) if isinstance(found, tuple) else found or "").replace("{None}|", "")


def escaped(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    """The whole page, in Markdown."""
    parts = [part for command in commands() for part in section(command) if part]
    return "\n\n".join([INTRODUCTION.strip(), *parts]) + "\n"


if __name__ == "__main__":
    print(page())
