"""The tables about studies in the documentation are those of the committed results."""

from __future__ import annotations

import json
import re

import pytest

from docs import studies_tables
from docs.markers import written_anew
from ivcl_fast.studies.definitions import STUDIES


@pytest.mark.parametrize("path", studies_tables.PAGES, ids=lambda path: path.name)
def test_writing_the_tables_again_changes_nothing(path):
    assert written_anew(path.read_text(), studies_tables.KINDS) == path.read_text()


def test_tables_are_written_between_their_markers():
    page = "a\n<!-- variants: slots -->\nold\n<!-- end -->\nb <!-- end -->\n"
    written = written_anew(page, studies_tables.KINDS)
    begin, rest = written.split("<!-- variants: slots -->\n")
    assert begin == "a\n" and rest.endswith(" |\n<!-- end -->\nb <!-- end -->\n")
    assert rest.startswith("| slots per frame | 1 | 2 | 4 | 8 | 16 |\n|---|")


def test_every_committed_study_is_whole_and_on_a_page():
    page = "".join(path.read_text() for path in studies_tables.PAGES)
    assert "<!-- studies -->" in page
    for folder in studies_tables.RESULTS.iterdir():
        study = (folder / "study.md").read_text()
        name = json.loads((folder / "results.json").read_text())["study"]
        assert name in STUDIES and f"python -m ivcl_fast.sweep {name} " in study
        assert folder.name.removeprefix(name)[:1] in ("", "-"), "a study, or a part of one"
        assert {f.name for f in folder.iterdir()} >= {"study.png", "results.json", "config.json"}
        shown = re.search(rf"<!-- tables: {folder.name} -->(.*?)<!-- end -->", page, re.DOTALL)
        rows = [line for line in shown[1].splitlines() if line.startswith("|")]
        assert rows and set(rows) <= set(study.splitlines())
        for table in json.loads((folder / "results.json").read_text())["values"].values():
            assert all(f"\n| {label} | " in shown[1] for label in table)
