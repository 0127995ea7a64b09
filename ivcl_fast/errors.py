"""User-facing errors, and checks of single settings."""

from __future__ import annotations

import sys

from ivcl_fast.text import printable

MOST = 10**12
"""Default upper bound of a setting, low enough that no computation overflows."""


class UserError(ValueError):
    """An error that the user can fix.

    The message is one line that starts with the name of the argument or flag:
    ``--batch-size: expected at least 1, got 0``. Commands print it without a traceback and exit
    with status 2.
    """


def require_at_least(config: object, least: float, *names: str, most: float = MOST) -> None:
    """Raise :class:`UserError` for the first field that is below ``least`` or above ``most``.

    ``None`` (not set) is accepted.
    """
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if not value >= least:  # also for NaN
            raise UserError(f"{flag(name)}: expected at least {least}, got {value}")
        if value > most:
            raise UserError(f"{flag(name)}: expected at most {most:,}, got {value}")


def require_above(config: object, bound: float, *names: str, most: float = MOST) -> None:
    """Raise :class:`UserError` for the first field that is at most ``bound``, or above ``most``."""
    for name in names:
        if not getattr(config, name) > bound:
            raise UserError(f"{flag(name)}: expected above {bound}, got {getattr(config, name)}")
        require_at_least(config, bound, name, most=most)


def flag(name: str) -> str:
    """Return the flag of a setting: ``--batch-size`` for ``batch_size``."""
    return "--" + name.replace("_", "-")


def print_error(error: UserError | str) -> None:
    """Print an error as one line on stderr."""
    print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
