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

from ivcl_fast import IVCL, IVCLClassifier, SlotAutoencoder
from ivcl_fast.analysis.clips import DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.data.dataset import Clip
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import Evaluation, Result
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.report.clips import describe_clip, varied
from ivcl_fast.report.page import Section, write_page, write_study
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
    results = [Result("ours", SCORES)]
    sections = [Section("Results", "", results_table(results))]
    html, data = write(tmp_path, run, cater_clips(run, 2), results=results, sections=sections)
    first, second = data["clips"]
    assert first["right"] and first["end"] == "moved while hidden"
    assert not second["right"] and second["end"] == "visible"
    floor = first["floor"]
    assert len(floor["belief"]) == 5 and sum(floor["belief"][0]) == pytest.approx(1, abs=0.03)
    assert floor["true"] == [0, 1, 8, 9, 4] and floor["hidden"] == [False, False, True, True, True]
    names = [layer["name"] for layer in first["layers"]]
    assert names[:4] == ["input", "slot 1", "slot 2", "given to the model"]
    queries = [tile is not None for tile in first["layers"][-1]["tiles"]]
    assert sum(queries) == 3  # only query frames are reconstructed
    assert "<td>seed</td>" not in html and re.search("seed</th><td>7</td>", html)
    hint = "ours, all (4): 95 % interval 20.0 to 80.0; chance 2.8 %"
    assert f'title="{hint}">50.0 % <small>[20.0, 80.0]</small>' in html
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
    sections = [Section(NASTY, NASTY, results_table([Result(NASTY, SCORES)]))]
    html, data = write(tmp_path, run, [shown], sections=sections)
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


# --- In a browser --------------------------------------------------------------------------------

DECODE = "Promise.all([...images.values()].map(image => image.decode())).then(draw)"
PIXELS = "document.getElementById('frame0').toDataURL()"
FAINT = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => color.map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (element) => {
    if (!element) return [255, 255, 255];
    const [r, g, b, alpha = 1] = numbers(getComputedStyle(element).backgroundColor);
    const below = alpha < 1 ? back(element.parentElement) : [0, 0, 0];
    return [r, g, b].map((c, i) => alpha * c + (1 - alpha) * below[i]);
  };
  return [...document.querySelectorAll("body *")].filter((element) => {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || !element.getClientRects().length || element.tagName === "SCRIPT") return false;
    const style = getComputedStyle(element);
    const front = numbers(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(front), light(back(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((element) => element.outerHTML);
}"""
"""Elements whose text has less contrast than WCAG's level AA asks for."""


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """A page of the browser; it may neither say nor ask for anything."""
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    yield page
    page.close()
    assert [text for text in said if not text.startswith(("file:", "data:"))] == []


def write_kind(kind: str, folder: Path) -> Path:
    """Write a small page of this kind."""
    path, names = folder / "report.html", ["off", NASTY, "on"]
    results = [Result("ours", SCORES), Result("other", SCORES)]
    sections = [Section("Results", "A note.", results_table(results))]
    if kind in ("CATER", "two runs"):
        run = run_in(folder, CELLS, "localize")
        clips = cater_clips(run, 4)
        if kind == "two runs":
            other = dict(clips[1], right=True)
            write_page(path, [run, run], [dict(clip, other=other) for clip in clips], sections)
            return path
        labels, answers = [4, 4, 4, 9], [4, 5, 4, 4]
        evaluation = evaluated("abcd", labels, answers, 36)
        write_page(path, [run], clips, sections, results, evaluation)
    elif kind == "study":
        folders = {f"variant {n}": [run_in(folder, CELLS, name=f"r{n}").folder] for n in range(7)}
        (folders["variant 0"][0] / "report.html").touch()
        write_study(path, ["A question?"], sections, folders)
    elif kind in ("ACRE", "classes", "no clips"):
        run = run_in(folder, names)
        about: dict[str, Any] = {"panels": True, "video": "problem"} if kind == "ACRE" else {}
        count = 0 if kind == "no clips" else 4
        shown = [clip_named(f"{kind} {n}", (names[n % 3],), **about) for n in range(count)]
        described = [describe_clip(run, models(3), clip, torch.eye(3)[1]) for clip in shown]
        evaluation = evaluated("abcd", [0, 1, 2, 0], [1, 1, 1, 1], 3)
        write_page(path, [run], described, sections, results, evaluation)
    else:  # neither answers nor classes
        run = run_in(folder, [])
        slots = SlotAutoencoder(config(objective="slot_attention")).eval()
        of = {"pretrained": slots if kind == "slot attention" else models(3)["pretrained"]}
        write_page(path, [run], [describe_clip(run, of, clip_named(NASTY))])
    return path


KINDS = ["CATER", "two runs", "ACRE", "classes", "no classes", "slot attention", "study",
         "no clips"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_page(kind: str, opened: Any, tmp_path: Path) -> None:
    """Nothing is asked for, text can be read, pages fit, and what is shown changes."""
    opened.set_viewport_size({"width": 1600, "height": 900})
    opened.goto(write_kind(kind, tmp_path).as_uri())
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        assert opened.evaluate(FAINT) == []
    if kind not in ("study", "no clips"):
        opened.evaluate(DECODE)
        last = opened.evaluate(PIXELS)
        opened.keyboard.press("ArrowLeft")
        assert opened.evaluate(PIXELS) != last
        opened.keyboard.press("2")
        opened.evaluate(DECODE)
        assert opened.evaluate(PIXELS) != last
    for width in (1600, 390):
        opened.set_viewport_size({"width": width, "height": 800})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_the_player_and_its_filters(opened: Any, tmp_path: Path) -> None:
    address = write_kind("CATER", tmp_path).as_uri()
    opened.goto(address)
    assert opened.inner_text("#frame-title") == "frame 5, 2.0 s"  # the last is shown first
    opened.keyboard.press("ArrowLeft")
    assert opened.inner_text("#frame-title") == "frame 4, 1.5 s"
    opened.keyboard.press(" ")
    opened.locator("#frame-title", has_text="frame 3").wait_for()
    opened.keyboard.press(" ")
    assert opened.inner_text("#play") == "Play"

    opened.keyboard.press("ArrowDown")
    assert opened.inner_text("#clip-name") == "clip 1"
    for name, value, clips in (
        ("right", "true", [0, 2]),
        ("end", "hidden", [0, 3]),
        ("end", "moved while hidden", [0, 3]),
        ("guess", "5", [1, 3]),
        ("order", "-1", [3, 2, 1, 0]),
    ):
        opened.select_option(f"[name={name}]", value)
        shown = opened.locator("#thumbnails button:visible .name").all_inner_texts()
        assert shown == [f"clip {n}" for n in clips]
        assert opened.inner_text("#clip-name") in shown
        opened.select_option(f"[name={name}]", "")

    opened.locator("#confusion polygon").nth(9).click()
    assert "1 of 1 such clips are answered wrongly" in opened.inner_text("#chosen")
    assert opened.inner_text("#count") == "0 of 4 clips"
    for first in ("ours", "chance"):
        opened.click(".sortable button:text('model')")
        assert opened.inner_text(".sortable tbody td >> nth=0") == first
    opened.goto(f"{address}#clip=clip+2&frame=2")
    assert opened.inner_text("#clip-name") == "clip 2"
    assert opened.inner_text("#frame-title") == "frame 2, 0.5 s"
