"""The page of a run: what it holds, and how it behaves in a browser."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ivcl_fast import IVCL, IVCLClassifier
from ivcl_fast.analysis.clips import DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.data.dataset import Clip
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import Evaluation, Result
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.report.clips import describe_clip, varied
from ivcl_fast.report.page import Section, write_page
from ivcl_fast.report.tables import results_table
from ivcl_fast.training.classes import Classes
from ivcl_fast.training.settings import TrainConfig, write_settings
from tests.analysis.test_trajectory import scene_of
from tests.support.small_models import config, random_video

NASTY = "<script>alert(1)</script>\n</script>\U0001f600" + "x" * 300
CELLS = [f"cell {i}" for i in range(36)]
SCORES = {"all": {"top1": Score(0.5, 0.2, 0.8, 1 / 36, n=4), "l1": Score(math.nan, 0, 9, 3, False)}}


def run_in(folder: Path, names: list[str], task: str = "auto", name: str = "run") -> FinishedRun:
    """A run with settings and curves, but without data or trained models."""
    settings = TrainConfig(model=config()).replace(
        device="cpu", amp="off", out=folder, name=name, task=task, seed=7
    )
    run = FinishedRun(settings)
    run.classes = Classes("class", names)
    run.folder.mkdir()
    write_settings(run.config)
    records = [
        {"stage": "pretrain", "step": 1, "clips": 16, "loss": 1.5},
        {"stage": "pretrain", "step": 2, "clips": 32, "loss": math.nan},
        {"stage": "finetune", "step": 1, "clips": 16, "val_top1": 0.25},
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


def models(classes: int) -> Models:
    torch.manual_seed(0)
    return {
        "pretrained": IVCL(config()).eval(),
        "finetuned": IVCLClassifier(config(), classes).eval(),
    }


def clip_named(name: str, labels: tuple[str, ...] = (), **about: Any) -> DecodedClip:
    return DecodedClip(
        name, [*range(5)], dict(enumerate(random_video(1)[0])), 2.0, labels=labels, **about
    )


def data_of(page: Path) -> Any:
    """The numbers in a page, as its script reads them."""
    found = re.search('<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found[1])


def write(folder: Path, run: FinishedRun, clips: Any, **options: Any) -> tuple[str, Any]:
    path = folder / "report.html"
    write_page(path, [run], clips, **options)
    return path.read_text(), data_of(path)


def cater_clips(run: FinishedRun, count: int) -> list[dict[str, Any]]:
    """Clips, alternately right and wrong; every third ends with the snitch hidden."""
    shown = []
    for number in range(count):
        scene = scene_of([0, 1, 8, 9, 4])
        if number % 3:
            scene["movements"]["cone_1"] = []
        probabilities = torch.full((36,), 0.01)
        probabilities[4 if number % 2 == 0 else 5] = 0.5 + 0.01 * number
        clip = clip_named(f"clip {number}", ("cell 4",), scene=scene)
        shown.append(describe_clip(run, models(36), clip, probabilities))
    return shown


def test_cater_has_a_belief_and_a_path_for_every_frame(tmp_path: Path) -> None:
    run = run_in(tmp_path, CELLS, "localize")
    results = [Result("ours", SCORES)]
    sections = [Section("Results", "", results_table(results, seed=7))]
    html, data = write(tmp_path, run, cater_clips(run, 2), results=results, sections=sections)
    first, second = data["clips"]
    assert first["right"] and first["end"] == "moved while hidden"
    assert not second["right"] and second["end"] == "visible"
    floor = first["floor"]
    assert len(floor["belief"]) == 5 and sum(floor["belief"][0]) == pytest.approx(1, abs=0.03)
    assert floor["true"] == [0, 1, 8, 9, 4] and floor["hidden"] == [False, False, True, True, True]
    names = [layer["name"] for layer in first["layers"]]
    assert names[:4] == ["input", "slot 1", "slot 2", "masked input"]
    queries = [tile is not None for tile in first["layers"][-1]["tiles"]]
    assert sum(queries) == 3  # only query frames are reconstructed
    assert "<td>seed</td>" not in html and re.search("seed</th><td>7</td>", html)
    hint = "ours, all (4): 95 % interval 20.0 % to 80.0 %; chance 2.8 %; seed 7"
    assert f'title="{hint}">50.0 % <small>[20.0, 80.0]</small>' in html
    loss, top1 = data["curves"]
    assert loss["lines"] == {"pretrain": [[16, 1.5], [32, None]]}
    assert top1["lines"] == {"finetune": [[16, 25.0]]} and top1["title"].endswith("%")
    assert top1["chance"] == pytest.approx(100 / 36)


def test_the_panels_of_acre_and_its_probabilities(tmp_path: Path) -> None:
    run = run_in(tmp_path, ["off", "undetermined", "on"])
    clip = clip_named("problem", ("on",), panels=True)
    shown = describe_clip(run, models(3), clip, torch.tensor([0.2, 0.1, 0.7]))
    _, data = write(tmp_path, run, [shown])
    (found,) = data["clips"]
    assert found["titles"][-1] == "query" and found["floor"] is None
    assert found["probabilities"] == [["on", 0.7, True], ["off", 0.2, False],
                                      ["undetermined", 0.1, False]]  # fmt: skip


def test_texts_of_others_are_never_markup(tmp_path: Path) -> None:
    run = run_in(tmp_path, [NASTY, "dogs"])
    clip = clip_named(NASTY, (NASTY,))
    shown = describe_clip(run, models(2), clip, torch.tensor([0.9, math.nan]))
    sections = [Section(NASTY, NASTY, results_table([Result(NASTY, SCORES)]))]
    html, data = write(tmp_path, run, [shown], sections=sections)
    assert "alert(1)</script>" not in html
    assert data["clips"][0]["truth"] == NASTY and data["clips"][0]["name"] == NASTY


def test_a_page_without_clips_says_why(tmp_path: Path) -> None:
    def clips() -> Iterator[dict[str, Any]]:
        raise UserError("no clip can be decoded")
        yield {}

    html, data = write(tmp_path, run_in(tmp_path, CELLS), clips())
    assert "No clips to show. no clip can be decoded" in html and data["clips"] == []


def test_right_and_wrong_clips_alternate() -> None:
    evaluation = evaluated("abcd", [1] * 4, [1, 1, 1, 0], 2)
    assert [clip.name for clip in varied(evaluation)] == ["a", "d", "b", "c"]


def evaluated(names: str, labels: list[int], answers: list[int], classes: int) -> Evaluation:
    clips = [Clip(name, name, label) for name, label in zip(names, labels, strict=True)]
    return Evaluation({}, torch.eye(classes)[answers], torch.tensor(labels), clips)


def test_mistakes_by_class(tmp_path: Path) -> None:
    run = run_in(tmp_path, ["cats", "dogs", "cows"])
    evaluation = evaluated("abcd", [0, 0, 0, 1], [0, 1, 1, 1], 3)
    _, data = write(tmp_path, run, [], evaluation=evaluation)
    confusion = data["confusion"]
    assert confusion["pairs"] == [[0, 0, 1], [0, 1, 2], [1, 1, 1]]
    assert confusion["n"] is None and confusion["names"] == ["cats", "dogs", "cows"]
