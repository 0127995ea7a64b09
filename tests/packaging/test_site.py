"""The documentation's generated parts, and that what CONTRIBUTING.md names is there.

`make docs` builds the site itself, and stops at a broken link.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import flags
from ivcl_fast import kernels

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = flags.commands()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_page_of_flags_is_what_help_shows():
    page = flags.page()
    for command in COMMANDS:
        assert f"\n## {command}\n" in page
    for flag in ("--mask-ratio", "--pretrain-clips", "--masks", "--seeds"):
        assert flag in page


def test_every_op_is_in_the_api_reference():
    page = (ROOT / "docs" / "api" / "kernels.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"members: \[(.*)\]", page))))
    functions = {name: getattr(kernels, name) for name in kernels.__all__}
    assert named == {name for name, of in functions.items() if not of.__module__.endswith("._op")}
