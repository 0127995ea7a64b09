"""Pages in a headless Chromium: what they show, and how they answer to keys and clicks."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ivcl_fast.analysis.clips import DecodedClip
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.something_else.write import SyntheticSomethingElse
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.evaluation.evaluate import Result
from ivcl_fast.report import study
from ivcl_fast.report.clips import describe_clip
from ivcl_fast.report.page import Section, write_page
from ivcl_fast.report.tables import results_table
from ivcl_fast.train import main as train
from tests.report.test_page import (
    CELLS,
    NASTY,
    SCORES,
    cater_clips,
    clip_named,
    evaluated,
    models,
    run_in,
)
from tests.support.own_videos import write_one
from tests.support.short_run import ShortRun
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS, random_video

DECODE = "Promise.all([...images.values()].map(image => image.decode())).then(draw)"
PIXELS = "document.getElementById('frame0').toDataURL()"
FAINT = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number)
    .map((c, i) => color.startsWith("color(srgb") && i < 3 ? 255 * c : c);
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
def opened(browser: Any) -> Iterator[Any]:
    """A page of the browser, which must log nothing and request nothing."""
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    yield page
    page.close()
    assert [text for text in said if not text.startswith(("file:", "data:"))] == []


def check(opened: Any, path: Path, clips: int) -> None:
    """Text can be read, the page fits, and what is shown changes with the frame and the layer."""
    opened.set_viewport_size({"width": 1600, "height": 900})
    opened.goto(path.as_uri())
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        assert opened.evaluate(FAINT) == []
    for width in (390, 1600):
        opened.set_viewport_size({"width": width, "height": 800})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.locator("#thumbnails button").count() == clips
    if not clips:
        return
    opened.evaluate(DECODE)
    last = opened.evaluate(PIXELS)
    if opened.evaluate("new Set(data.clips[0].titles).size") > 1:
        opened.keyboard.press("ArrowLeft")
        assert opened.evaluate(PIXELS) != last
        opened.keyboard.press("ArrowRight")
    for layer in range(2, 1 + opened.locator("#layers button").count()):
        opened.keyboard.press(str(layer))
        opened.evaluate(DECODE)
        assert opened.evaluate(PIXELS) != last
    for right in ("true", "false") if opened.locator("[name=right]:visible").count() else ():
        opened.select_option("[name=right]", right)
        mark = "✓" if right == "true" else "✗"
        shown = opened.locator("#thumbnails button:visible").all_inner_texts()
        assert all(text.startswith(mark) for text in shown)


# --- Runs ----------------------------------------------------------------------------------------


def train_quickly(kind: str, folder: Path) -> Path:
    """Train on small data of a kind; return the run's folder."""
    flags: tuple[str, ...] = FRAME_FLAGS
    if kind == "acre":
        flags = ()  # clips have seven panels
        data = write_dataset(folder / "data", SyntheticAcre("comp", train=4, val=1, test=2), 1)
    elif kind == "something-else":
        data = write_dataset(folder / "data", SyntheticSomethingElse(train=32, val=8), 1)
    elif kind == "slot attention":
        data = write_dataset(folder / "data", SyntheticCater(train=8, val=4), 1)
        flags += ("--objective", "slot_attention")
    else:
        data = folder / "data"
        for number in range(6):  # the next one is a folder of frames
            classes = ("", "") if kind == "videos without classes" else ("left", "<b>right")
            write_one(data / classes[number % 2], number)
    source = {"slot attention": "cater"}.get(kind, kind.partition(" ")[0])
    arguments = [*RUN_FLAGS, *flags, "--data", f"{source}:{data}", "--quick", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *arguments, "--name", "run"])
        train()
    return folder / "run"


RUNS = {
    "acre": 8, "something-else": 8, "videos with classes": 2, "videos without classes": 2,
    "slot attention": 4,
}  # fmt: skip
"""Kinds of runs, and the clips in their pages."""


@pytest.mark.parametrize("kind", RUNS)
def test_the_page_of_a_run(kind: str, opened: Any, tmp_path: Path) -> None:
    check(opened, train_quickly(kind, tmp_path) / "report.html", RUNS[kind])


def test_the_pages_of_cater_and_of_a_study(
    short_run: ShortRun, opened: Any, tmp_path: Path
) -> None:
    run = short_run.folder
    check(opened, run / "report.html", 16)
    folders = {"localize": {"IV-CL": [run, run], "again": [run, run]}}
    study.write(tmp_path, "Does it help?", "pretraining", folders, ["help"], 2, 2)
    check(opened, tmp_path / "report.html", 0)
    hints = [of.get_attribute("title") for of in opened.locator("tbody td").all()]
    assert any(re.fullmatch(r"IV-CL, all; by seed: [\d.]+ %, [\d.]+ %", hint) for hint in hints)


# --- Small pages ---------------------------------------------------------------------------------


def write_cater_page(path: Path) -> None:
    """Write a page of four clips like CATER's."""
    run = run_in(path.parent, CELLS, "localize")
    results = [Result("ours", SCORES), Result("other", SCORES)]
    sections = [Section("Results", "A note.", results_table(results))]
    evaluation = evaluated("abcd", [4, 4, 4, 9], [4, 5, 4, 4], 36)
    write_page(path, [run], cater_clips(run, 4), sections, results, evaluation)


def test_two_runs(opened: Any, tmp_path: Path) -> None:
    run, path = run_in(tmp_path, CELLS, "localize"), tmp_path / "report.html"
    clips = cater_clips(run, 4)
    other = dict(clips[1], right=True)
    write_page(path, [run, run], [dict(clip, other=other) for clip in clips])
    check(opened, path, 4)
    assert opened.locator("canvas[id^=frame]").count() == 2


def test_bad_input(opened: Any, tmp_path: Path) -> None:
    """Names that are no names, values that are no numbers, and a video of one frame."""
    names, path = ["off", NASTY, "on"], tmp_path / "report.html"
    run = run_in(tmp_path, names)
    of, broken = models(3), models(3)
    for model in broken.values():
        for weight in model.parameters():
            weight.data.fill_(math.nan)
    one_frame = DecodedClip(NASTY, [0] * 5, {0: random_video(1)[0, 0]}, 0.0, labels=(NASTY,))
    shown = [
        describe_clip(run, of, one_frame),
        describe_clip(run, broken, clip_named("broken", ("on",))),
        describe_clip(run, of, clip_named(NASTY * 2), torch.tensor([math.nan, math.nan, 0.5])),
    ]
    results = [Result("ours", SCORES), Result(NASTY, SCORES)]
    sections = [Section(NASTY, NASTY, results_table(results))]
    write_page(path, [run], shown, sections, results, evaluated("abcd", [0, 1, 2, 0], [1] * 4, 3))
    check(opened, path, 3)
    for heading in opened.locator(".sortable thead button").all():
        heading.click()
    opened.click(".mistake >> nth=0")
    assert opened.inner_text("#chosen").startswith("2 of 2 such clips are answered wrongly")
    assert "nan" in opened.inner_text(".sortable")


def test_a_page_that_goes_on(opened: Any, tmp_path: Path) -> None:
    """It plays, and loads itself again for clips that were not ready before."""
    path = tmp_path / "report.html"
    run = run_in(tmp_path, CELLS, "localize")
    clips = cater_clips(run, 2)
    write_page(path, [run], clips[:1], live=True)
    opened.goto(path.as_uri())
    assert opened.inner_text("#play") == "Pause" and opened.inner_text("#clip-name") == "clip 0"
    opened.select_option("#speed", "24")
    write_page(path, [run], clips, live=True)
    opened.locator("#clip-name", has_text="clip 1").wait_for()
    write_page(path, [run], clips)
    opened.locator("#play", has_text="Play").wait_for()
    assert opened.inner_text("#clip-name") == "clip 1"


def test_the_player_and_its_filters(opened: Any, tmp_path: Path) -> None:
    write_cater_page(tmp_path / "report.html")
    address = (tmp_path / "report.html").as_uri()
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
        ("right", "true", [0, 2]), ("end", "hidden", [0, 3]), ("end", "moved while hidden", [0, 3]),
        ("guess", "5", [1, 3]), ("order", "-1", [3, 2, 1, 0]),
    ):  # fmt: skip
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
