"""The documentation's generated parts, and that what CONTRIBUTING.md names is there.

`make docs` builds the site itself, and stops at a broken link.
"""

from __future__ import annotations

import re
from pathlib import Path

from ivcl_fast import kernels

ROOT = Path(__file__).resolve().parents[2]


def test_every_op_is_in_the_api_reference():
    page = (ROOT / "docs" / "api" / "kernels.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"members: \[(.*)\]", page))))
    functions = {name: getattr(kernels, name) for name in kernels.__all__}
    assert named == {name for name, of in functions.items() if not of.__module__.endswith("._op")}
