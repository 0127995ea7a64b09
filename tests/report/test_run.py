"""The report of a run, and tables as Markdown and within the width of any terminal."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.data.dataset import Clip
from ivcl_fast.evaluation.baselines import CONE
from ivcl_fast.evaluation.evaluate import Evaluation, Result
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.report.run import answers_by_clip, summary
from ivcl_fast.report.tables import PLAIN_WIDTH, Table, results_table


def evaluation(names: str, answers: list[int]) -> Evaluation:
    """Answers to clips whose label is 1."""
    clips = [Clip(name, name, 1) for name in names]
    logits = torch.eye(2)[answers]
    return Evaluation({}, logits, torch.ones(len(clips), dtype=torch.int64), clips)


def test_models_may_have_answered_different_clips():
    """Where videos could no longer be decoded: one from the start, another one since then."""
    ours = evaluation("abc", [1, 0, 1])
    results = [ours.result("ours"), evaluation("bcd", [1, 0, 1]).result("baseline")]
    assert [clip["correct"] for clip in answers_by_clip(results, ours)] == [
        {"ours": 1.0}, {"ours": 0.0, "baseline": 1.0}, {"ours": 1.0, "baseline": 0.0}
    ]  # fmt: skip


def test_a_sentence_compares_the_hidden_clips_with_chance_and_baselines():
    def result(title: str, value: float) -> Result:
        score = Score(value, value - 0.05, value + 0.05, 1 / 36)
        return Result(
            title, {"all": {"top1": Score(0.9, 0.8, 1, 1 / 36)}, "hidden": {"top1": score}}
        )

    guess, scratch = result(CONE, 0.302), result("scratch", 0.19)
    said = summary([result("ours", 0.177), guess, scratch])
    assert said.startswith("On clips that end with a hidden snitch, “ours” has top-1 17.7 %: ")
    assert f"better than chance (2.8 %), worse than “{CONE}” (30.2 %), level with “sc" in said
    assert f"This is not clearly better than “{CONE}”" in said
    assert summary([result("ours", 0.4), guess]).endswith("without memory or reasoning.")


def test_a_smaller_distance_is_better():
    score = Score(1.0, 0.9, 1.1, 2.0, percent=False)
    said = summary([Result("ours", {"all": {"distance": score}})])
    assert said.endswith("distance 1.00: better than chance (2.00).")


SCORE = Score(0.148, 0.121, 0.179, 1 / 3, n=40)


def test_results_end_with_chance() -> None:
    few = {"all": {"query": SCORE}}
    whole = {"all": {"query": SCORE, "screen_off": SCORE}}
    table = results_table([Result("IV-CL", whole, {"a": 1.0}), Result("counting", few)])
    assert str(table).splitlines() == [
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
