"""A user's mistake, told in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one line: what, and what is accepted.

    Commands print it without a traceback and exit with status 2.
    """


def tell(error: UserError) -> None:
    """Print it as the one line a user sees."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's ``main`` and turn :class:`UserError` into one line on stderr, exit 2."""
    try:
        main()
    except UserError as error:
        tell(error)
        raise SystemExit(2) from None
    raise SystemExit(0)
