"""Text of pages that is generated: what stands between ``<!-- KIND -->`` and ``<!-- end -->``.

A marker may have arguments: ``<!-- KIND: ARGUMENT; ARGUMENT -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ivcl_fast.files import write_text

Kinds = Mapping[str, Callable[..., Iterable[str] | None]]
"""What returns the lines of each kind, given its arguments, or None where they stay as they are."""


def written_anew(page: str, kinds: Kinds) -> str:
    """Return a page with everything between its markers made again."""
    marker = rf"(<!-- ({'|'.join(kinds)})(?:: ([^>\n]*))? -->\n)"

    def filled(found: re.Match[str]) -> str:
        begin, kind, arguments, end = found.groups()
        lines = kinds[kind](*(arguments.split("; ") if arguments else ()))
        return found[0] if lines is None else begin + "\n".join(lines) + f"\n{end}"

    return re.sub(marker + ".*?(<!-- end -->)", filled, page, flags=re.DOTALL)


def write_anew(pages: Iterable[Path], kinds: Kinds) -> None:
    """Write pages with everything between their markers made again."""
    for page in pages:
        write_text(page, written_anew(page.read_text(), kinds))
