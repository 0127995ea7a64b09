"""Every picture of a run shows what its captions say: the right clip, class, slot, head, frame."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ivcl_fast import reference
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.clips import DecodedClip
from ivcl_fast.analysis.trajectory import SnitchTrajectory
from ivcl_fast.data.dataset import Clip
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.report import animation, confusion, plots, run_pictures
from ivcl_fast.report.animation import attention_frames
from ivcl_fast.report.attention import relative_to_uniform
from ivcl_fast.report.confusion import confusion_caption, confusion_picture
from ivcl_fast.report.figures import evenly_spaced
from ivcl_fast.report.floor import centres
from ivcl_fast.report.run_pictures import draw_answers, draw_clip
from ivcl_fast.report.trajectory import trajectory_figure
from tests.support.small_models import config, random_video, sharpened


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures that would have been written, by the names of their files."""
    kept: dict[str, Any] = {}
    for module in (confusion, plots, run_pictures):
        monkeypatch.setattr(module, "save", lambda figure, path: kept.update({path.name: figure}))
    return kept


# --- Classes -------------------------------------------------------------------------------------

COUNTS = np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
"""Of eight cats two are taken for dogs, of two dogs one for a cat; there are no cows."""
NAMES = ["cats", "dogs", "cows"]


def test_confusion_has_a_row_for_each_class_and_a_column_for_each_answer(
    figures: dict[str, Any],
) -> None:
    confusion_picture(Path("confusion.png"), COUNTS, NAMES)
    axes = figures["confusion.png"].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "answer")
    shares = np.asarray(axes.images[0].get_array())
    assert shares.tolist() == [[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 0]]
    written = {(text.get_position()[::-1], text.get_text()) for text in axes.texts}
    assert written == {((0, 0), "6"), ((0, 1), "2"), ((1, 0), "1"), ((1, 1), "1")}
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == NAMES


def test_the_caption_names_what_is_taken_for_what() -> None:
    caption = confusion_caption(COUNTS, NAMES)
    said = "Most often: cats taken for dogs (2 of 8); dogs taken for cats (1 of 2)."
    assert caption.endswith(said)
    assert "Most often" not in confusion_caption(np.diag([6, 2, 0]), NAMES)


def test_answers_are_those_to_the_clips_that_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """These are some of the clips, in an order of their own."""
    shown: list[Any] = []
    monkeypatch.setattr(plots, "answers_picture", lambda path, *args: shown.extend(args))
    logits = torch.randn(4, 16)
    evaluated = [Clip(f"clip {i}", f"video {i}", i) for i in range(4)]
    evaluation = Evaluation({}, logits, torch.arange(4), evaluated)
    clips = [DecodedClip(f"clip {i}", [0], {0: torch.full((3, 2, 2), i)}, 24.0) for i in (2, 0, 3)]
    run: Any = SimpleNamespace(folder=tmp_path, data=SimpleNamespace(grid=4))
    draw_answers(run, evaluation, clips)
    frames, labels, of_clips, hidden, grid = shown
    assert frames[:, 0, 0, 0, 0].tolist() == labels.tolist() == [2, 0, 3]
    assert torch.equal(of_clips, logits[[2, 0, 3]])
    assert (hidden, grid) == ([None] * 3, 4)


# --- Slots ---------------------------------------------------------------------------------------


def test_the_picture_of_a_head_shows_its_attention(
    figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def of(frames: Any, maps: Any, titles: Any, measured: str) -> Any:
        return maps, measured

    monkeypatch.setattr(run_pictures, "attention_figure", of)
    monkeypatch.setattr(run_pictures, "attention_frames", lambda *_: [])
    monkeypatch.setattr(run_pictures, "write_gif", lambda *_: None)
    (video,) = random_video(clips=1)
    clip = DecodedClip("clip", list(range(5)), dict(enumerate(video)), 24.0)
    model: Any = sharpened(reference.IVCL(config()))
    run: Any = SimpleNamespace(localizes=False, config=SimpleNamespace(model=config()))
    draw_clip(run, clip, {"untrained": model}, tmp_path, per_head=True)
    assert len(figures) == 3
    for name, head, said in (
        ("attention.png", None, "mean of the heads"),
        ("attention-head-1.png", 0, "head 1"),
        ("attention-head-2.png", 1, "head 2"),
    ):
        maps, measured = figures[name]
        assert torch.equal(maps["untrained"], slot_attention(model, video[None], head)[0])
        assert measured.endswith(said)


def moving(ends: int) -> SnitchTrajectory:
    """Predictions of another cell of 4 x 4 after every frame; the snitch is one cell further."""
    cells = np.arange(ends) % 15
    probabilities = np.eye(16, dtype=np.float32)[cells]
    return SnitchTrajectory(list(range(ends)), probabilities, cells + 1, np.arange(ends) > 1)


def is_floor(axes: Any, trajectory: SnitchTrajectory, at: int) -> bool:
    """Whether the cross and the outline are at the predicted and the true cell."""
    (cross,), (outline,) = axes.lines, axes.patches
    found = [(cross.get_xdata()[0], cross.get_ydata()[0]), outline.get_xy()[:4].mean(axis=0)]
    assert trajectory.cells is not None
    cells = int(trajectory.predicted[at]), int(trajectory.cells[at])
    return np.allclose(found, [centres(cell, 4) for cell in cells])


def test_an_animation_shows_each_slot_and_the_prediction_of_each_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(animation, "pixels", lambda figure: figure)
    maps = {name: torch.rand(3, 2, 16) for name in ("pretrained", "finetuned")}
    frames, titles = torch.rand(3, 3, 8, 8), ["one", "two", "three"]
    relative = {name: relative_to_uniform(of_model) for name, of_model in maps.items()}
    trajectory = moving(3)
    for at, figure in enumerate(attention_frames(frames, maps, titles, trajectory)):
        shown: Any = figure
        panels = {axes.get_title(): axes for axes in shown.axes}
        assert shown.get_suptitle() == titles[at]
        shown_frame = panels["input"].images[0].get_array()
        np.testing.assert_array_equal(shown_frame, frames[at].movedim(0, -1))
        for name, of_model in relative.items():
            for slot in range(2):
                drawn = panels[f"slot {slot + 1}, {name}"].images[1].get_array()
                np.testing.assert_array_equal(drawn, of_model[at, slot])
        hidden = " (hidden)" if at > 1 else ""
        assert is_floor(panels[f"predicted place of the snitch{hidden}"], trajectory, at)


# --- Where the snitch is -------------------------------------------------------------------------


def test_the_prediction_after_a_frame_stands_below_it() -> None:
    trajectory, frames = moving(20), torch.rand(20, 3, 8, 8)
    figure = trajectory_figure(trajectory, frames, [f"frame {i}" for i in range(20)])
    for column, at in enumerate(evenly_spaced(8, 20)):
        frame, floor = figure.axes[2 * column : 2 * column + 2]
        assert frame.get_title().split("\n") == [f"frame {at}", "snitch hidden" if at > 1 else ""]
        np.testing.assert_array_equal(frame.images[0].get_array(), frames[at].movedim(0, -1))
        assert is_floor(floor, trajectory, at)
