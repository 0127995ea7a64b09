"""What all commands share: flags, ``--version``, and how errors, signals and pipes end them."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import functools
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NoReturn, TextIO, get_type_hints

import ivcl_fast
from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError, print_error
from ivcl_fast.text import first_line, printable
from ivcl_fast.training.signals import Interrupted

STDOUT = 1
PARENT = "IVCL_FAST_PARENT"
"""Environment variable with the process that a command ends with, set by that process."""
SET_DEATH_SIGNAL = 1
"""Linux's ``PR_SET_PDEATHSIG``."""
REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
}  # fmt: skip
"""Why a system refuses a file: no rights to the folder, no room, or a broken disk."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
"""What errors of PyTorch contain when a tensor is too large for a GPU, the CPU or any machine."""


def parse(
    config: type,
    name: str,
    description: str | None = None,
    arguments: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """Parse the flags of ``python -m ivcl_fast.<name>`` into the dataclass ``config``.

    ``description``: reStructuredText above the flags in ``--help``, such as a module's docstring.
    ``arguments``: by default those of the process. ``options``: passed on to ``tyro.cli``. Raises
    :class:`UserError` for an empty value, and ``SystemExit`` after ``--help``, ``--version`` and
    for flags that are not accepted; then only rank 0 prints.
    """
    import tyro

    join_help_lines(config)
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--version" in arguments:
        distributed.print_rank0(f"ivcl_fast {ivcl_fast.__version__}")
        raise SystemExit(0)
    check_not_empty(arguments)
    if description is not None:
        description = plain_text(description) + "\n\nUse --version to print the version."
    try:
        return tyro.cli(
            config,
            prog=f"python -m ivcl_fast.{name}",
            description=description,
            args=arguments,
            console_outputs=distributed.is_main(),
            **options,
        )
    except SystemExit:
        distributed.let_rank0_report_first()
        raise


def check_not_empty(arguments: Sequence[str]) -> None:
    """Raise :class:`UserError` for an empty value, often of an unset variable: ``--out "$DIR"``.

    As a path it would be the current folder.
    """
    for before, argument in pairwise(["", *arguments]):
        if argument and not re.fullmatch("--[^=]+=", argument):
            continue
        flag = argument.removesuffix("=") or before
        where = f"{flag}: " if flag.startswith("--") else ""
        raise UserError(f"{where}'' is not accepted; accepted: a value that is not empty")


def plain_text(docstring: str) -> str:
    """Remove a docstring's markup, and join the lines of each paragraph."""
    return re.sub(r"(?<!\n)\n(?![\n ])", " ", docstring.replace("``", "")).strip()


@functools.cache
def join_help_lines(config: type) -> None:
    """Give tyro the docstrings of a dataclass's fields, and of nested ones, without line breaks."""
    import docstring_parser

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

    ``continues``: whether a stopped command goes on where it was when it is started again. A
    :class:`UserError`, a file that the system refuses (:data:`REFUSALS`) and too little memory
    become one line on stderr and exit status 2. Ctrl-C gives status 130, and a closed pipe
    (``... | head``) gives 141 and no message.
    """
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[to_stderr])
    with suppress(AttributeError):  # in place of a stream, another object
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    end_with_parent()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see console.before_import
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        sys.stdout.flush()
    except UserError as error:
        distributed.let_rank0_report_first()
        print_error(error)
        raise SystemExit(2) from None
    except BrokenPipeError:
        if not stdout_is_closed():  # it was the pipe of a worker process
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python flushes it at exit
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno not in REFUSALS and not error.filename:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print_error(
            f"{where}{error.strerror}; accepted: files that can be read, and a folder that can be "
            "written, with room"
        )
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(p in str(error) for p in OUT_OF_MEMORY):
            raise
        fitting = "what fits into memory, such as a smaller --batch-size"
        if "CUDA" in str(error):  # a resumed run keeps its batch
            fitting += " or --placement ram"
        print_error(f"{first_line(error)}; accepted: {fitting}")
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        how = str(stop) or "stopped" + "; the same command continues" * continues
        distributed.print_rank0(how, sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(0)


class PrintableFormatter(logging.Formatter):
    """Formats log records so that a terminal shows, and does not obey, the names in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record; line breaks stay."""
        return "\n".join(map(printable, super().format(record).split("\n")))


class _Output:
    """A standard output that is given up, once and for all, when writing to it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, method: Callable[..., Any], *args: Any) -> None:
        try:
            method(*args)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            with suppress(OSError):
                print(f"standard output: {error.strerror}; going on without it", file=sys.stderr)


@contextmanager
def long_work(how_to_continue: str) -> Iterator[None]:
    """After a signal, say how the work continues, and exit with status 128 plus its number.

    It goes on without a standard output whose reader goes away (``... | head``), or that is full.
    """
    before = sys.stdout
    sys.stdout = _Output(before)
    try:
        yield
    except Interrupted as stop:
        distributed.print_rank0(f"stopped by {stop}; {how_to_continue}", sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    finally:
        sys.stdout = before


def end_with_parent() -> None:
    """Let the system send SIGTERM when the process that :data:`PARENT` names dies, if it is set."""
    if not (parent := os.environ.pop(PARENT, "")):
        return
    with suppress(AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):  # it has died already
        raise SystemExit(128 + signal.SIGTERM)


def stdout_is_closed() -> bool:
    """Whether the standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
