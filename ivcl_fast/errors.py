"""A user's mistake, told in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one line: what, and what is accepted.

    Commands print it without a traceback and exit with status 2.
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


REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
}  # fmt: skip
"""Why a system does not take a file: no rights to the folder, or no room."""


def tell(error: UserError) -> None:
    """Print it as the one line a user sees."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's ``main``: a :class:`UserError` becomes one line on stderr and exit status 2.

    So does a file that the system refuses (:data:`REFUSALS`), wherever it is written.
    """
    try:
        main()
    except UserError as error:
        tell(error)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        tell(UserError(f"{where}{error.strerror}; give a folder that can be written, with room"))
        raise SystemExit(2) from None
    raise SystemExit(0)
