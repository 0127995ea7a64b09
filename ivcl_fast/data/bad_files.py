"""Messages about videos that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from ivcl_fast.errors import UserError
from ivcl_fast.text import printable

SHOWN = 10
"""Number of videos that a summary names."""


def named(bad_files: Mapping[str, str]) -> str:
    """Return a line with name and reason for each of the first videos, and the number of others."""
    lines = [f"  {name}: {reason}" for name, reason in islice(bad_files.items(), SHOWN)]
    if len(bad_files) > SHOWN:
        lines.append(f"  and {len(bad_files) - SHOWN} more")
    return "\n".join(map(printable, lines))


def summary(bad_files: Mapping[str, str], total: int, file: Path) -> str:
    """Return a message of several lines; ``total``: number of videos; ``file``: the full list."""
    return (
        f"{len(bad_files)} of {total} videos cannot be used:\n{named(bad_files)}\n"
        f"the full list is in {file}"
    )


def check_all_usable(bad_files: Mapping[str, str], total: int, file: Path | None) -> None:
    """Raise :class:`UserError` for ``--require-all`` if a video cannot be used."""
    if bad_files:
        name, reason = next(iter(bad_files.items()))
        where = "" if file is None else f"; the full list is in {file}"
        raise UserError(
            f"--require-all: expected {total} usable videos, got {total - len(bad_files)}; "
            f"{name}: {reason}{where}"
        )
