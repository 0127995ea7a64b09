"""Tables: the same content as Markdown, and within the width of any terminal."""

from __future__ import annotations

import pytest

from ivcl_fast.evaluation.evaluate import Result
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.report.tables import PLAIN_WIDTH, Table, results_table

SCORE = Score(0.148, 0.121, 0.179, 1 / 3, n=40)


def test_results_end_with_chance() -> None:
    few = {"all": {"query": SCORE}}
    whole = {"all": {"query": SCORE, "screen_off": SCORE}}
    table = results_table([Result("IV-CL", whole, {"a": 1.0}), Result("counting", few)])
    assert table.markdown() == [
        "| model | clips | query | screened-off |", "|---|---|---|---|",
        "| IV-CL | all (40) | 14.8 % [12.1, 17.9] | 14.8 % [12.1, 17.9] |",
        "| counting | all (40) | 14.8 % [12.1, 17.9] |  |", "| chance | all | 33.3 % | 33.3 % |",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [1, 3, 6])
def test_what_is_printed_fits_and_is_whole(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"metric {i}" for i in range(columns)]
    rows = [["a model", group, *([str(SCORE)] * columns)] for group in ("visible", "hidden")]
    Table(["model", "clips", *names], rows).print("a [title]")
    printed = capsys.readouterr().out
    title, *lines = printed.splitlines()
    assert title == "a [title]" and max(map(len, lines)) <= PLAIN_WIDTH
    assert all(printed.count(f" {name} ") == 1 for name in names)
    assert printed.count("14.8 %") == printed.count("[12.1,") == 2 * columns
    assert printed.count("a model") == 1  # and not in every row
    assert printed.count("visible") == printed.count("hidden") == 1
