"""Errors that are the user's to mend, and checks of single settings."""

from __future__ import annotations

import sys

from ivcl_fast.text import printable

MOST = 10**12
"""Largest number that a setting may be, unless its check says otherwise: what is computed from
larger ones overflows."""


class UserError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: what is wrong and what is accepted, by the name of the argument or
    flag. Commands print it without a traceback and exit with status 2.
    """


def require_at_least(config: object, least: float, *names: str, most: float = MOST) -> None:
    """Raise :class:`UserError` for the first of a config's settings that is out of bounds.

    Those are ``least`` and ``most``, which are accepted, as is None: a setting that is not given.
    """
    for name in names:
        value = getattr(config, name)
        _require(value is None or value >= least, name, value, f"at least {least}")
        _require(value is None or value <= most, name, value, f"at most {most:,}")


def require_above(config: object, bound: float, *names: str, most: float = MOST) -> None:
    """As :func:`require_at_least`, but ``bound`` itself is not accepted."""
    for name in names:
        value = getattr(config, name)
        _require(value > bound, name, value, f"above {bound}")
        require_at_least(config, bound, name, most=most)


def _require(condition: bool, name: str, value: float, accepted: str) -> None:
    if not condition:
        raise UserError(f"{flag(name)}: {value} is not accepted; accepted: {accepted}")


def flag(name: str) -> str:
    """Return the flag of a setting: ``--batch-size`` of ``batch_size``."""
    return "--" + name.replace("_", "-")


def print_error(error: UserError | str) -> None:
    """Print an error, or what it says, as one line on stderr."""
    print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
