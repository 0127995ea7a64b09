"""``python -m ivcl_fast.demo``: a packaged model on clips that are drawn, or on one's own video."""

from __future__ import annotations

import html
import re
import webbrowser
from pathlib import Path
from typing import Any

import pytest

import ivcl_fast
from ivcl_fast.demo import main
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
    write_one(tmp_path / "videos", 1)
    assert command(main, tmp_path / "videos", "--out", page, "--no-open")[0] == 0
    assert len(data_of(page)["clips"]) == 2 and len(opened) == 1
    status, _, error = command(main, tmp_path / "none.mp4", "--out", page)
    assert status == 2 and error.startswith("error: VIDEO ")


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
