"""``python -m ivcl_fast.demo``: a packaged model on clips that are drawn, or on one's own video."""

from __future__ import annotations

import html
import re
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

import ivcl_fast
from ivcl_fast.demo import CAMERAS, DemoConfig, demo, main
from tests.report.test_page import data_of
from tests.support.own_videos import write_one


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser is sent to."""
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", found.append)
    monkeypatch.setenv("DISPLAY", ":0")
    return found


def test_drawn_clips_have_their_true_path(tmp_path: Path, command: Any, opened: list[str]) -> None:
    page = tmp_path / "demo.html"
    assert command(main, "--out", page) == (0, f"open: {page}\n", "")
    assert opened == [page.as_uri()]
    visible, hidden = data_of(page)["clips"]
    assert visible["end"] == "visible" and "hidden" in hidden["end"]
    assert hidden["floor"]["hidden"][-1]
    assert len(hidden["floor"]["true"]) == len(hidden["floor"]["belief"]) == 16


def test_a_video_of_ones_own(tmp_path: Path, command: Any, opened: list[str]) -> None:
    video = write_one(tmp_path / "videos", 0)
    page = tmp_path / "demo.html"
    assert command(main, video, "--out", page)[0] == 0
    (clip,) = data_of(page)["clips"]
    assert clip["truth"] == "" and clip["right"] is None and clip["answer"].startswith("cell ")
    status, _, error = command(main, tmp_path / "none.mp4", "--out", page)
    assert status == 2 and error.startswith("error: VIDEO ") and len(opened) == 1


def test_a_folder_goes_on_with_the_next_file(tmp_path: Path, command: Any) -> None:
    """The page is there after the first video; a file that is no video is named and left out."""
    folder, page = tmp_path / "videos", tmp_path / "demo.html"
    for number in (0, 1):
        write_one(folder, number)
    (folder / "00b.mp4").write_bytes(b"no video")
    flags = DemoConfig(video=folder, out=page)
    states = [(len(data_of(path)["clips"]), data_of(path)["live"]) for path in demo(flags)]
    assert states == [(1, True), (2, True), (2, False)]
    status, said, _ = command(main, folder, "--out", page, "--no-open")
    assert status == 0 and said.count("open: ") == 1 and "00b.mp4: not a video" in said
    for number in (0, 1):
        next(folder.glob(f"{number:02d}.*")).write_bytes(b"no video")
    status, _, error = command(main, folder, "--out", page)
    assert status == 2 and "expected a usable video" in error


def test_a_camera_goes_on_until_it_is_stopped(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg's test picture in place of a camera; the oldest of too many clips goes."""
    page = tmp_path / "demo.html"
    monkeypatch.setitem(CAMERAS, "linux", ("lavfi", "testsrc=size=64x48:rate=10,hue=h={}"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ivcl_fast.demo.CLIPS", 2)
    pages = demo(DemoConfig(camera="0", seconds=0.5, out=page))
    for names in (["clip 1"], ["clip 1", "clip 2"], ["clip 2", "clip 3"]):
        next(pages)
        assert [clip["name"] for clip in data_of(page)["clips"]] == names
        assert data_of(page)["live"]
    assert data_of(page)["clips"][0]["titles"][-1] == "frame 5, 0.4 s"
    pages.close()  # as Ctrl-C does
    assert not data_of(page)["live"]
    monkeypatch.undo()
    status, _, error = command(main, "--camera", "none of these", "--out", page)
    assert status == 2 and error.startswith("error: --camera none of these: ")
    status, _, error = command(main, page, "--camera", "0")
    assert status == 2 and error == "error: --camera: expected no VIDEO, got both\n"


@pytest.mark.parametrize("decoded", [False, True])
def test_the_same_player_in_a_notebook(decoded: bool, tmp_path: Path) -> None:
    """Of frames, or of a video file; the page is inside the text that a notebook shows."""
    model = ivcl_fast.IVCLClassifier.from_pretrained("ivcl_fast/tiny-localize")
    sample = "ivcl_fast/sample.avi"
    shown = ivcl_fast.show(model, ivcl_fast.load_clip(sample, model.cfg) if decoded else sample)
    page = tmp_path / "page.html"
    (text,) = re.findall('srcdoc="([^"]*)"', shown._repr_html_())
    page.write_text(html.unescape(text))
    (clip,) = data_of(page)["clips"]
    assert len(clip["floor"]["belief"]) == 16 and clip["answer"].startswith("cell ")
