"""What the pictures show, read back from matplotlib's own objects."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ivcl_fast import SlotAutoencoder, reference
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.clips import DecodedClip
from ivcl_fast.analysis.trajectory import SnitchTrajectory
from ivcl_fast.data.dataset import Clip
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.report import confusion, plots
from ivcl_fast.report.attention import (
    attention_figure,
    attention_frames,
    measure_name,
    relative_to_uniform,
    write_gif,
)
from ivcl_fast.report.confusion import confusion_caption, confusion_picture
from ivcl_fast.report.figures import evenly_spaced, new_figure, save
from ivcl_fast.report.floor import to_picture, trajectory_figure
from ivcl_fast.report.run_pictures import draw_answers
from tests.support.small_models import config, random_video, sharpened


@pytest.fixture
def video() -> Tensor:
    return random_video(clips=2)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would have been written."""
    kept: list[Any] = []
    for module in (confusion, plots):
        monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    return kept


# --- Files ---------------------------------------------------------------------------------------


def test_pictures_are_png_files_and_leave_matplotlib_alone(tmp_path: Path, video: Tensor) -> None:
    before = dict(matplotlib.rcParams)
    folder = tmp_path / "new"
    plots.reconstruction_picture(reference.IVCL(config()), video, folder / "a.png")
    plots.curves_picture(folder / "c.png", RECORDS, CHANCE)
    plots.curves_picture(folder / "d.png", [])
    plots.answers_picture(folder / "e.png", video, *answers([0, 35], [0, 5]), [True, None])
    assert sorted(p.name for p in folder.iterdir()) == [f"{c}.png" for c in "acde"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.iterdir())
    assert dict(matplotlib.rcParams) == before


def test_a_failed_picture_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(self: Figure, file: BinaryIO, **options: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.curves_picture(path, RECORDS)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.filterwarnings("error")
def test_names_in_any_letters_make_a_picture(tmp_path: Path) -> None:
    figure = new_figure(1, 1)
    figure.suptitle("Häuser 猫")
    save(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size


def test_evenly_spaced() -> None:
    assert evenly_spaced(8, 16) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert evenly_spaced(8, 3) == [0, 1, 2]
    assert evenly_spaced(1, 3) == [0]


# --- Reconstruction ------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["ivcl", "mae", "joint"])
def test_reconstruction_shows_the_models_own_frames(
    video: Tensor, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    model = reference.IVCL(config(objective=objective))
    shown: list[Any] = []
    monkeypatch.setattr(plots, "reconstruction_grid", lambda *args: shown.extend(args))
    state = torch.get_rng_state()
    plots.reconstruction_picture(model, video, Path("unused"), seed=5)
    assert torch.equal(torch.get_rng_state(), state)

    _, frames, masked, rebuilt, titles, note = shown
    out = model(video, seed=reference.stream(torch.tensor(5), 2))
    chosen = evenly_spaced(4, out.query.shape[1])
    query = out.query[:, chosen]
    expected = model.reconstruct(video, out)[:, chosen]
    torch.testing.assert_close(rebuilt, expected.flatten(0, 1))
    true = video.take_along_dim(query[:, :, None, None, None], dim=1).flatten(0, 1) / 255
    torch.testing.assert_close(frames, true)
    masked_patches = reference.patchify(masked[:, None].expand(-1, 3, -1, -1), 4)
    assert torch.equal(masked_patches.all(-1), masked_patches.any(-1))
    for index, (clip, frame) in enumerate((c, f) for c in (0, 1) for f in query[c].tolist()):
        assert titles[index] == f"clip {clip + 1}\nframe {frame + 1} of 5"
        of_frame = masked_patches[index].all(-1).nonzero().flatten()
        assert of_frame.tolist() == out.ids_mask[clip, frame].tolist()
    assert "norm_pix" in note


def test_the_error_is_that_of_masked_pixels(figures: list[Any]) -> None:
    frames, masked = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    masked[:, :4, :4] = True
    rebuilt = frames.clone()
    rebuilt[1, :, 2, 3] += torch.tensor([0.3, 0.0, 0.6])
    plots.reconstruction_grid(Path("unused"), frames, masked, rebuilt, ["one", "two"])
    panels = figures[0].axes[:8]
    assert [panel.get_title() for panel in panels[:2]] == ["one", "two"]
    error = np.asarray(panels[7].images[0].get_array())
    assert np.argwhere(error > 1e-6).tolist() == [[2, 3]]
    # 0.3 in one of 16 masked pixels; the other 48 are the input's own.
    assert [p.get_xlabel() for p in panels[6:]] == ["mean 0.000", "mean 0.019"]


def test_the_part_of_each_slot_in_a_frame_is_drawn(video: Tensor, figures: list[Any]) -> None:
    model = SlotAutoencoder(config(objective="slot_attention", num_slots=1))
    shares = torch.zeros(2, 5, 2, 16, 16)
    shares[:, :, 0, :6], shares[:, :, 1, 6:] = 1, 1
    drawn = torch.rand(2, 5, 3, 16, 16)
    model.draw = lambda video: (drawn, shares)  # type: ignore[method-assign]
    plots.slots_picture(model, video, Path("unused"))
    panels, chosen = np.array(figures[0].axes).reshape(4, 8), evenly_spaced(4, 5)
    assert [row[0].get_ylabel() for row in panels] == ["input", "drawn", "slot 1", "background"]
    for column, (clip, frame) in enumerate((c, f) for c in (0, 1) for f in chosen):
        shown = [np.asarray(panel.images[0].get_array()) for panel in panels[:, column]]
        frame_itself = (video[clip, frame] / 255).movedim(0, -1).numpy()
        np.testing.assert_allclose(shown[0], frame_itself)
        np.testing.assert_allclose(shown[2][:6], frame_itself[:6], atol=1e-6)
        assert (shown[2][6:] == 1).all() and (shown[3][:6] == 1).all()


# --- Slot attention ------------------------------------------------------------------------------


def test_slot_attention_is_drawn_relative_to_uniform(video: Tensor) -> None:
    model = sharpened(reference.IVCL(config()))
    maps = slot_attention(model, video)[0]
    titles = [f"frame {t}" for t in range(1, 6)]
    figure = attention_figure(video[0] / 255, {"pretrained": maps}, titles, measure_name())
    panels: Any = figure.axes[:15]
    assert [p.get_title() for p in panels[:5]] == titles
    for s in range(2):
        for t in range(5):
            heat = np.asarray(panels[5 * (s + 1) + t].images[1].get_array())
            expected = (maps[t, s] / maps[t, s].mean()).view(4, 4)
            np.testing.assert_allclose(heat, expected, rtol=1e-5)
        on_patches = maps[:, s].sum(-1).mean()
        assert f"{on_patches:.0%} of attention" in panels[5 * (s + 1)].get_ylabel()


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
    return np.allclose(found, [to_picture(cell % 4 + 0.5, cell // 4 + 0.5) for cell in cells])


def test_an_animation_shows_each_slot_and_the_prediction_of_each_frame(tmp_path: Path) -> None:
    maps = {name: torch.rand(3, 2, 16) for name in ("pretrained", "finetuned")}
    frames, titles = torch.rand(3, 3, 8, 8), ["one", "two", "three"]
    trajectory = moving(3)
    drawn: list[Any] = [*attention_frames(frames, maps, titles, trajectory)]
    for at, figure in enumerate(drawn):
        panels = {axes.get_title(): axes for axes in figure.axes}
        assert figure.get_suptitle() == titles[at]
        np.testing.assert_array_equal(
            panels["input"].images[0].get_array(), frames[at].movedim(0, -1)
        )
        for name, of_model in maps.items():
            for slot in range(2):
                np.testing.assert_array_equal(
                    panels[f"slot {slot + 1}, {name}"].images[1].get_array(),
                    relative_to_uniform(of_model)[at, slot],
                )
        hidden = " (hidden)" if at > 1 else ""
        assert is_floor(panels[f"predicted cell{hidden}"], trajectory, at)
    assert write_gif(iter(drawn), tmp_path / "slots.gif") == 3
    with Image.open(tmp_path / "slots.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0


def test_a_spot_that_only_the_last_picture_has_keeps_its_colour(tmp_path: Path) -> None:
    figures = [new_figure(2, 1) for _ in range(3)]
    for number, figure in enumerate(figures):
        figure.suptitle(str(number))
    figures[2].add_subplot().imshow([[[250, 200, 20]]])
    write_gif(iter(figures), tmp_path / "slots.gif")
    with Image.open(tmp_path / "slots.gif") as gif:
        gif.seek(2)
        shown = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(shown - [250, 200, 20]).max(axis=-1).min() < 20


# --- Curves and answers --------------------------------------------------------------------------

RECORDS: list[dict[str, Any]] = [
    *(dict(stage="pretrain", step=i, clips=16 * i, loss=1 / i, lr=1e-3) for i in range(1, 51)),
    dict(stage="finetune", step=5, clips=80, loss=3.5, lr=1e-3),
    dict(stage="finetune", step=5, clips=80, val_top1=0.05),
    dict(stage="finetune", step=10, clips=160, val_top1=0.10),
    dict(stage="scratch", step=10, clips=160, val_top1=0.03),
]
CHANCE = {"val_top1": 1 / 36, "val_l1": 35 / 9}


def test_curves_put_every_value_over_clips(figures: list[Any]) -> None:
    plots.curves_picture(Path("unused"), RECORDS, CHANCE)
    shown = [axes for axes in figures[0].axes if axes.get_visible()]
    titles = [axes.get_title() for axes in shown]
    assert titles == ["Loss", "Validation top-1", "Highest learning rate"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in shown[1].lines}
    assert lines["finetune"] == [[80, 0.05], [160, 0.10]] and lines["scratch"] == [[160, 0.03]]
    assert lines["chance"][0][1] == 1 / 36
    assert [line.get_label() for line in shown[0].lines] == ["pretrain", "finetune"]


def answers(labels: list[int], guesses: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(labels), 5 * torch.eye(36)[guesses]


def test_answers_say_whether_they_are_correct_and_how_far_away(figures: list[Any]) -> None:
    frames = torch.zeros(3, 7, 3, 8, 8, dtype=torch.uint8)
    labels, logits = answers([5, 0, 14], [5, 35, 15])
    plots.answers_picture(Path("unused"), frames, labels, logits, [True, False, True])
    panels = np.array(figures[0].axes, dtype=object).reshape(3, 5)
    certain = f"(probability {np.exp(5) / (np.exp(5) + 35):.0%})"
    assert [p.get_title().split("\n") for p in panels[:, 4]] == [
        ["correct", certain], ["incorrect, 10 cells away", certain],
        ["incorrect, 1 cell away", certain],
    ]  # fmt: skip
    assert [p.get_ylabel().split()[-1] for p in panels[:, 0]] == ["hidden", "visible", "hidden"]


def test_answers_are_those_to_the_clips_that_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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


def test_the_floor_is_seen_from_the_camera(figures: list[Any]) -> None:
    # CATER's camera stands at +x, -y: the cell (5, 0) is the nearest, (0, 5) the farthest.
    frames = torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)
    labels, logits = answers([5, 30], [30, 0])
    plots.answers_picture(Path("unused"), frames, labels, logits, [False, False])
    for row, (height, guess) in enumerate([(-6, (6, 5)), (6, (1, 0))]):
        axes = figures[0].axes[5 * row + 4]
        (outline,), (cross,), (mesh,) = axes.patches, axes.lines, axes.collections
        assert max(outline.get_xy()[:, 1], key=abs) == height
        assert (cross.get_xdata()[0], cross.get_ydata()[0]) == guess
        y, x = np.unravel_index(np.asarray(mesh.get_array()).argmax(), (6, 6))
        corners = mesh.get_coordinates()[y : y + 2, x : x + 2]
        assert tuple(corners.mean(axis=(0, 1))) == guess


def test_the_prediction_after_a_frame_stands_below_it() -> None:
    trajectory, frames = moving(20), torch.rand(20, 3, 8, 8)
    figure: Any = trajectory_figure(trajectory, frames, [f"frame {i}" for i in range(20)])
    for column, at in enumerate(evenly_spaced(8, 20)):
        frame, floor = figure.axes[column], figure.axes[8 + column]
        assert frame.get_title().split("\n") == [f"frame {at}", "snitch hidden" if at > 1 else ""]
        np.testing.assert_array_equal(frame.images[0].get_array(), frames[at].movedim(0, -1))
        assert is_floor(floor, trajectory, at)


def test_confusion_has_a_row_for_each_class_and_a_column_for_each_answer(
    figures: list[Any],
) -> None:
    counts, names = np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]]), ["cats", "dogs", "cows"]
    confusion_picture(Path("confusion.png"), counts, names)
    axes = figures[0].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "answer")
    shares = np.asarray(axes.images[0].get_array())
    assert shares.tolist() == [[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 0]]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == names
    caption = confusion_caption(counts, names)
    assert "cats taken for dogs (2 of 8); dogs taken for cats (1 of 2)" in caption
    assert "Most often" not in confusion_caption(np.diag([6, 2, 0]), names)
