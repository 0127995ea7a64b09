"""Messages about media that cannot be used: they name the first ones, and the file with all."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from ivcl_fast.errors import UserError
from ivcl_fast.text import printable

SHOWN = 10
"""Number of media that a summary names."""


def named(bad_files: Mapping[str, str]) -> str:
    """Return lines that name the first media, with the reason, and count the others."""
    lines = [f"  {name}: {reason}" for name, reason in islice(bad_files.items(), SHOWN)]
    if len(bad_files) > SHOWN:
        lines.append(f"  and {len(bad_files) - SHOWN} more")
    return "\n".join(map(printable, lines))


def summary(bad_files: Mapping[str, str], total: int, file: Path) -> str:
    """Say in several lines which of ``total`` media cannot be used; ``file`` names all of them."""
    return (
        f"{len(bad_files)} of {total} videos cannot be used:\n{named(bad_files)}\n"
        f"all of them, with the reasons, are in {file}"
    )


def check_all_usable(bad_files: Mapping[str, str], total: int, file: Path | None) -> None:
    """Raise :class:`UserError`, for ``--require-all``, if there is one that cannot be used."""
    if bad_files:
        name, reason = next(iter(bad_files.items()))
        where = "" if file is None else f"; all of them are named in {file}"
        raise UserError(
            f"--require-all: {len(bad_files)} of {total} videos cannot be used, the first is "
            f"{name}: {reason}{where}"
        )
