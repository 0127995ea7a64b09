"""Generated text of pages: what stands between ``<!-- KIND: ARGUMENT; ... -->`` and
``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ivcl_fast.files import write_text

Kinds = Mapping[str, Callable[..., Iterable[str]]]
"""Functions by kind. Each takes the arguments and returns the lines."""


def written_anew(page: str, kinds: Kinds) -> str:
    """Return a page with the text between its markers generated again."""
    marker = rf"(<!-- ({'|'.join(kinds)})(?:: ([^>\n]*))? -->\n)"

    def filled(found: re.Match[str]) -> str:
        begin, kind, arguments, end = found.groups()
        lines = kinds[kind](*(arguments.split("; ") if arguments else ()))
        return begin + "\n".join(lines) + f"\n{end}"

    return re.sub(marker + ".*?(<!-- end -->)", filled, page, flags=re.DOTALL)


def write_anew(pages: Iterable[Path], kinds: Kinds) -> None:
    """Write pages with the text between their markers generated again."""
    for page in pages:
        write_text(page, written_anew(page.read_text(), kinds))
