"""Errors that are the user's to mend, and checks of single settings."""

from __future__ import annotations

import sys

from ivcl_fast.text import printable


class UserError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: what is wrong and what is accepted, by the name of the argument or
    flag. Commands print it without a traceback and exit with status 2.
    """


def require_at_least(config: object, least: float, *names: str) -> None:
    """Raise :class:`UserError` for the first of a config's settings that is below ``least``."""
    for name in names:
        if not (value := getattr(config, name)) >= least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: {value} is not accepted; accepted: at least {least}")


def require_above(config: object, bound: float, *names: str) -> None:
    """Raise :class:`UserError` for the first of a config's settings that is not above ``bound``."""
    for name in names:
        if not (value := getattr(config, name)) > bound:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: {value} is not accepted; accepted: above {bound}")


def print_error(error: UserError) -> None:
    """Print an error as one line on stderr."""
    print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
