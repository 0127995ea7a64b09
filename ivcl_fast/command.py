"""Shared by all commands: flags, ``--version``, and exits after errors, signals and closed
pipes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NoReturn, get_type_hints

import docstring_parser
import tyro

import ivcl_fast
from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError, print_error
from ivcl_fast.text import first_line, printable

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
"""Substrings of PyTorch's out-of-memory messages, for a GPU or a CPU."""


def parse(
    config: type,
    name: str,
    description: str | None = None,
    arguments: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """Parse the flags of ``python -m ivcl_fast.<name>`` into the dataclass ``config``.

    ``description``: text above the flags in ``--help``. ``options``: passed on to ``tyro.cli``.
    """
    join_help_lines(config)
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--version" in arguments:
        distributed.print_rank0(f"ivcl_fast {ivcl_fast.__version__}")
        raise SystemExit(0)
    if description is not None:
        description = plain_text(description) + "\n\nUse --version to print the version."
    try:
        return tyro.cli(
            config,
            prog=f"python -m ivcl_fast.{name}",
            description=description,
            args=arguments,
            console_outputs=distributed.is_main(),
            config=(tyro.conf.DisallowNone,),  # else an optional flag reads ``{None}|INT``
            **options,
        )
    except SystemExit:
        distributed.let_rank0_report_first()
        raise


def plain_text(docstring: str) -> str:
    """Remove a docstring's markup, and join the lines of each paragraph."""
    text = re.sub(r"(?<!\n)\n(?![\n ])", " ", docstring.replace("``", "")).strip()
    return text.replace("\n\n ", "\n ")  # tyro adds a line break before an indented line


@functools.cache
def join_help_lines(config: type) -> None:
    """Give tyro the docstrings of a dataclass's fields, and of nested ones, without line breaks."""
    texts = {
        parameter.arg_name: " ".join((parameter.description or "").replace("``", "").split())
        for base in reversed(config.__mro__[:-1])
        for parameter in docstring_parser.parse_from_object(base).params
    }
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(kind := hints[field.name]):
            join_help_lines(kind)  # type: ignore[arg-type]
        elif field.name in texts:
            field.metadata = MappingProxyType({"help": texts[field.name]})


def run_command(main: Callable[[], None], continues: bool = False) -> NoReturn:
    """Run the ``main`` function of a command, then exit.

    ``continues``: whether running a stopped command again continues it. Errors that the user can
    fix print one line and exit with status 2; signals exit with 128 plus their number.
    """
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[to_stderr])
    with suppress(AttributeError):  # not a text stream, as in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see ivcl_fast/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        distributed.let_rank0_report_first()
        end(str(error))
    except BrokenPipeError:
        # Python flushes the standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno is None:  # of a library
            raise
        end(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(p in str(error) for p in OUT_OF_MEMORY):
            raise
        end(f"{first_line(error)}; try a smaller --batch-size")
    except distributed.Interrupted as stop:
        distributed.print_rank0(f"stopped by {stop}", sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except KeyboardInterrupt as stop:
        how = str(stop) or "stopped" + "; the same command continues" * continues
        distributed.print_rank0(how, sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    raise SystemExit(0)


def end(message: str) -> NoReturn:
    """Print an error as one line and exit with status 2."""
    print_error(message)
    raise SystemExit(2) from None


class PrintableFormatter(logging.Formatter):
    """Formats log records without control characters from the names in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record; line breaks stay."""
        return "\n".join(map(printable, super().format(record).split("\n")))
