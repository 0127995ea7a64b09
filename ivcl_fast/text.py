"""Names that others have given, of videos and classes, made fit for a terminal and for Markdown."""

from __future__ import annotations

import html
import re

_MARKUP = re.compile(r"[\\`*_\[\]|$]")


def printable(text: str) -> str:
    """Replace characters that a terminal obeys or cannot show, line breaks too, by ``?``."""
    return "".join(c if c.isprintable() else "?" for c in text)


def markdown(text: str) -> str:
    """Return Markdown, for a paragraph or a table, that shows ``text`` as it is."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable(text), quote=False))
