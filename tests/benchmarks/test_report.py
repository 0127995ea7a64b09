"""The documentation has the committed results, and results written now can be read."""

from __future__ import annotations

import re

import pytest

from benchmarks import report
from benchmarks.results import RESULTS as FOLDER
from benchmarks.results import Results, read
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


def test_results_are_read_as_they_were_written(tmp_path):
    rows = [{"benchmark": "a", "name": "ours", "seconds": 1e-3}, {"benchmark": "a", "error": "no"}]
    results = Results("pytest", machine={"device": "a CPU"}, rows=rows)
    results.write(tmp_path / "some.json")
    assert read(tmp_path / "some.json") == results


def test_a_table_leaves_out_the_outcomes_of_tests(tmp_path, monkeypatch):
    """gpu-check writes them, and the parts that it skipped, beside the rows of benchmarks."""
    measured = {"benchmark": "a", "name": "ours", "seconds": 1e-3}
    rows = [{"part": "tests", "test": "t", "outcome": "passed"}, measured, {"skipped": "no card"}]
    Results("make gpu-check", machine={"device": "a GPU"}, rows=rows).write(tmp_path / "card.json")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "ours" in report.rows_table("card", "a")[-1]
    assert report.rows_table("card") == report.rows_table("card", "a")
