"""``python -m ivcl_fast.demo``: a packaged model on clips that are drawn, or on one's own video."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import pytest

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
    assert not visible["hidden"] and hidden["hidden"] and hidden["floor"]["hidden"][-1]
    assert len(hidden["floor"]["true"]) == len(hidden["floor"]["belief"]) == 16


def test_a_video_of_ones_own(tmp_path: Path, command: Any, opened: list[str]) -> None:
    video = write_one(tmp_path / "videos", 0)
    page = tmp_path / "demo.html"
    assert command(main, video, "--out", page)[0] == 0
    (clip,) = data_of(page)["clips"]
    assert clip["truth"] == "" and clip["right"] is None and clip["answer"].startswith("cell ")
    status, _, error = command(main, tmp_path / "none.mp4", "--out", page)
    assert status == 2 and error.startswith("error: VIDEO ")
