"""Words of others, such as names of videos and messages, made fit for a terminal and Markdown."""

from __future__ import annotations

import html
import re

_MARKUP = re.compile(r"[\\`*_\[\]|$]")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def printable(text: str) -> str:
    """Replace characters that a terminal obeys or cannot show, line breaks too, by ``?``."""
    return "".join(c if c.isprintable() else "?" for c in text)


def markdown(text: str) -> str:
    """Return Markdown, for a paragraph or a table, that shows ``text`` as it is."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable(text), quote=False))
