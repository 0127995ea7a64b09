"""The documentation has the committed results, and results written now can be read."""

from __future__ import annotations

import re

import pytest

from benchmarks import report
from benchmarks.results import RESULTS as FOLDER
from benchmarks.results import read
from docs.markers import written_anew

RESULTS = sorted(FOLDER.glob("*.json"))
MARKER = rf"<!-- ({'|'.join(report.KINDS)})(: .*)? -->\n"


def test_writing_the_page_anew_changes_nothing():
    page = report.PAGE.read_text()
    assert page.count("<!-- end -->") == len(re.findall(MARKER, page)) > 0
    assert written_anew(page, report.KINDS) == page


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_committed_results_are_readable_and_shown(file):
    results = read(file)
    assert results.date
    if results.command.startswith("make gpu-check"):  # also of this machine's card, not committed
        assert file.with_suffix(".md").is_file(), "gpu-check writes a page of its own"
        return
    assert results.rows and results.machine["packages"]
    assert f" {file.stem}" in report.PAGE.read_text()
