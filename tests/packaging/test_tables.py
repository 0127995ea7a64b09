"""The generated tables of the documentation are what they would be now."""

from __future__ import annotations

import re

import pytest

from docs import tables
from docs.markers import written_anew
from ivcl_fast.config import PRESETS

PAGES = tables.pages()
PLANS = [path for path in PAGES if "<!-- plan: " in path.read_text()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_writing_the_tables_again_changes_nothing(path):
    """But for predictions of memory, see below: those of large presets take too long."""
    kinds = tables.KINDS | {"plan": lambda _: None}
    assert written_anew(path.read_text(), kinds) == path.read_text()


def planned(text: str) -> dict[tuple[str, str], list[str]]:
    """The rows of a page's plan: cells by preset and stage."""
    rows = re.findall(r"^\| (\w+) \| (pretrain|finetune) \| (.*) \|$", text, re.MULTILINE)
    return {(preset, stage): cells.split(" | ") for preset, stage, cells in rows}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_the_smallest_preset_is_predicted_as_its_recipe_says(path):
    text = path.read_text()
    rows = planned(text)
    assert [preset for preset, stage in rows if stage == "finetune"] == [*PRESETS]
    (flags,) = re.findall(r"<!-- plan: (.*) -->", text)
    stages = "pretrain", "finetune"
    assert tables.plan_rows("tiny", flags) == [["tiny", s, *rows["tiny", s]] for s in stages]
