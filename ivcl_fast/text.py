"""Escape untrusted text, such as file names and error messages, for a terminal and Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_MARKUP = re.compile(r"[\\`*_\[\]|$]")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if it has no message."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def printable(text: str) -> str:
    """Replace control and unprintable characters, line breaks included, with ``?``."""
    return "".join(c if c.isprintable() else "?" for c in text)


def markdown(text: str) -> str:
    """Escape ``text`` for a paragraph or a table cell in Markdown."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable(text), quote=False))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; cells are Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]
