"""The page of a run: what it holds, and how it behaves in a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ivcl_fast import IVCL, IVCLClassifier, SlotAutoencoder
from ivcl_fast.analysis.clips import DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.data.dataset import Clip
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import Evaluation, Result
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.report.page import describe_clip, varied, write_page
from ivcl_fast.training.classes import Classes
from ivcl_fast.training.settings import TrainConfig, write_settings
from tests.analysis.test_trajectory import scene_of
from tests.support.small_models import config, random_video

NASTY = "<script>alert(1)</script>\n</script>\U0001f600" + "x" * 300
CELLS = [f"cell {i}" for i in range(36)]
SCORES = {"all": {"top1": Score(0.5, 0.2, 0.8, 1 / 36, n=4), "l1": Score(math.nan, 0, 9, 3, False)}}


def run_in(folder: Path, names: list[str], task: str = "auto") -> FinishedRun:
    """A run with settings and curves, but without data or trained models."""
    settings = TrainConfig(model=config()).replace(
        device="cpu", amp="off", out=folder, name="run", task=task, seed=7
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


def write(folder: Path, run: FinishedRun, clips: Any, results: Any = ()) -> tuple[str, Any]:
    path = folder / "report.html"
    write_page(path, run, results, clips)
    return path.read_text(), data_of(path)


def cater_clips(run: FinishedRun, count: int) -> list[dict[str, Any]]:
    """Clips that are in turn right and wrong; every third ends with the snitch hidden."""
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
    result = Result("ours", SCORES)
    html, data = write(tmp_path, run, cater_clips(run, 2), [result])
    first, second = data["clips"]
    assert first["right"] and first["hidden"] and not second["right"] and not second["hidden"]
    floor = first["floor"]
    assert len(floor["belief"]) == 5 and sum(floor["belief"][0]) == pytest.approx(1, abs=0.03)
    assert floor["true"] == [0, 1, 8, 9, 4] and floor["hidden"] == [False, False, True, True, True]
    names = [layer["name"] for layer in first["layers"]]
    assert names[:4] == ["input", "slot 1", "slot 2", "given to the model"]
    queries = [tile is not None for tile in first["layers"][-1]["tiles"]]
    assert sum(queries) == 3  # only query frames are reconstructed
    assert "<td>seed</td>" not in html and re.search("seed</th><td>7</td>", html)
    assert re.search('title="95 % interval 20.0 % to 80.0 %; n = 4; chance 2.8 %">50.0 %', html)
    loss, top1 = data["curves"]
    assert loss["lines"] == {"pretrain": [[16, 1.5], [32, None]]}
    assert top1["chance"] == pytest.approx(1 / 36)


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
    html, data = write(tmp_path, run, [shown], [Result(NASTY, SCORES)])
    assert "alert(1)</script>" not in html
    assert data["clips"][0]["truth"] == NASTY and data["clips"][0]["name"] == NASTY


def test_videos_without_classes_and_of_one_frame(tmp_path: Path) -> None:
    run = run_in(tmp_path, [])
    slots = SlotAutoencoder(
        config(objective="slot_attention", num_frames=1, num_query_frames=1)
    ).eval()
    clip = DecodedClip("one", [0], {0: random_video(1)[0, 0]}, 0.0)
    _, data = write(tmp_path, run, [describe_clip(run, {"pretrained": slots}, clip)])
    (found,) = data["clips"]
    assert found["answer"] is None and found["right"] is None and found["titles"] == ["frame 1"]
    names = [layer["name"] for layer in found["layers"]]
    assert names[-3:] == ["segments", "reconstruction", "error"]


def test_a_page_without_clips_says_why(tmp_path: Path) -> None:
    def clips() -> Iterator[dict[str, Any]]:
        raise UserError("no clip can be decoded")
        yield {}

    html, data = write(tmp_path, run_in(tmp_path, CELLS), clips())
    assert "No clips to show. no clip can be decoded" in html and data["clips"] == []


def test_right_and_wrong_clips_alternate() -> None:
    clips = [Clip(name, name, 1) for name in "abcd"]
    evaluation = Evaluation({}, torch.eye(2)[[1, 1, 1, 0]], torch.ones(4, dtype=torch.int64), clips)
    assert [clip.name for clip in varied(evaluation)] == ["a", "d", "b", "c"]


# --- In a browser --------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


DECODE = "Promise.all([...images.values()].map(image => image.decode())).then(draw)"
PIXELS = "document.getElementById('frame').toDataURL()"


def test_the_page_plays_without_errors_or_requests(browser: Any, tmp_path: Path) -> None:
    run = run_in(tmp_path, CELLS, "localize")
    write(tmp_path, run, cater_clips(run, 4), [Result("ours", SCORES), Result("other", SCORES)])
    page, said, asked = browser.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (tmp_path / "report.html").as_uri()
    page.goto(address)
    page.evaluate(DECODE)

    last = page.evaluate(PIXELS)  # the last frame is shown first
    assert page.inner_text("#frame-title") == "frame 5, 2.0 s"
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#frame-title") == "frame 4, 1.5 s" and page.evaluate(PIXELS) != last
    page.keyboard.press("ArrowRight")
    assert page.evaluate(PIXELS) == last
    for key in "234":  # two slots, and what the model is given
        page.keyboard.press(key)
        page.evaluate(DECODE)
        assert page.evaluate(PIXELS) != last
    page.keyboard.press("1")

    page.keyboard.press(" ")
    page.locator("#frame-title", has_text="frame 3").wait_for()
    page.keyboard.press(" ")
    assert page.inner_text("#play") == "Play"

    page.keyboard.press("ArrowDown")
    assert page.inner_text("#clip-name") == "clip 1"
    page.select_option("[name=right]", "true")
    assert page.inner_text("#count") == "2 of 4 clips" and page.inner_text("#clip-name") == "clip 0"
    page.select_option("[name=right]", "")
    page.select_option("[name=hidden]", "true")
    assert page.locator("#thumbnails button:visible").count() == 2
    page.select_option("[name=hidden]", "")
    page.select_option("[name=order]", "-1")
    assert "clip 3" in page.inner_text("#thumbnails button >> nth=0")

    page.click("#results button:text('model')")
    assert page.inner_text("#results tbody td >> nth=0") == "ours"
    page.click("#results button:text('model')")
    assert page.inner_text("#results tbody td >> nth=0") == "chance"

    page.goto(f"{address}#clip=clip+2&frame=2")
    assert page.inner_text("#clip-name") == "clip 2"
    assert page.inner_text("#frame-title") == "frame 2, 0.5 s"
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)
