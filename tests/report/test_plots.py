"""What the pictures show, checked through matplotlib's own objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ivcl_fast import SlotAutoencoder, reference
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.report import plots
from ivcl_fast.report import probes as probe_report
from ivcl_fast.report.attention import attention_figure, measure_name
from ivcl_fast.report.figures import evenly_spaced, new_figure, save
from tests.support.small_models import config, random_video, sharpened


@pytest.fixture
def video() -> Tensor:
    return random_video(clips=2)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would have been written."""
    kept: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure))
    return kept


# --- Files ---------------------------------------------------------------------------------------


def test_all_pictures_are_png_files_and_leave_matplotlib_alone(
    tmp_path: Path, video: Tensor
) -> None:
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
    plots.reconstruction_picture(model, video, "unused", seed=5)
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


def test_reconstruction_grid_draws_the_error_of_what_was_masked(figures: list[Any]) -> None:
    frames, masked = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    masked[:, :4, :4] = True
    rebuilt = frames.clone()
    rebuilt[1, :, 2, 3] += torch.tensor([0.3, 0.0, 0.6])
    plots.reconstruction_grid("unused", frames, masked, rebuilt, ["one", "two"])
    panels = figures[0].axes[:8]
    assert [panel.get_title() for panel in panels[:2]] == ["one", "two"]
    for column in (0, 1):
        seen = np.asarray(panels[2 + column].images[0].get_array())
        assert (seen[:4, :4] == np.float32(plots.MASKED_GRAY)).all()
        np.testing.assert_array_equal(seen[4:], frames[column, :, 4:].movedim(0, -1))
    error = np.asarray(panels[7].images[0].get_array())
    assert np.argwhere(error > 1e-6).tolist() == [[2, 3]]
    assert error[2, 3] == pytest.approx(0.3)
    assert panels[6].images[0].get_clim() == panels[7].images[0].get_clim()  # one colour bar
    # 0.3 in one of 16 masked pixels; the other 48 are the input's own.
    assert [p.get_xlabel() for p in panels[6:]] == ["mean 0.000", "mean 0.019"]
    assert panels[6].get_ylabel() == "absolute error\n(below: mean over\nmasked patches)"


def test_each_slots_part_of_a_frame_is_drawn(video: Tensor, figures: list[Any]) -> None:
    model = SlotAutoencoder(config(objective="slot_attention", num_slots=1))
    shares = torch.zeros(2, 5, 2, 16, 16)
    shares[:, :, 0, :6], shares[:, :, 1, 6:] = 1, 1
    drawn = torch.rand(2, 5, 3, 16, 16)
    model.draw = lambda video: (drawn, shares)  # type: ignore[method-assign]
    plots.slots_picture(model, video, Path("unused"))
    panels, chosen = np.array(figures[0].axes).reshape(4, 8), evenly_spaced(4, 5)
    assert [row[0].get_ylabel() for row in panels] == ["input", "drawn", "slot 1", "background"]
    for column, (clip, frame) in enumerate((c, f) for c in (0, 1) for f in chosen):
        assert panels[0, column].get_title() == f"clip {clip + 1}\nframe {frame + 1} of 5"
        shown = [np.asarray(panel.images[0].get_array()) for panel in panels[:, column]]
        frame_itself = (video[clip, frame] / 255).movedim(0, -1).numpy()
        np.testing.assert_allclose(shown[0], frame_itself)
        np.testing.assert_allclose(shown[1], drawn[clip, frame].movedim(0, -1))
        np.testing.assert_allclose(shown[2][:6], frame_itself[:6], atol=1e-6)
        assert (shown[2][6:] == 1).all() and (shown[3][:6] == 1).all()


# --- Slot attention ------------------------------------------------------------------------------


def test_slot_attention_is_drawn_relative_to_uniform(video: Tensor) -> None:
    model = sharpened(reference.IVCL(config()))
    maps = slot_attention(model, video)[0]
    titles = [f"frame {t}" for t in range(1, 6)]
    figure = attention_figure(video[0] / 255, {"pretrained": maps}, titles, measure_name())
    panels = figure.axes[:15]
    assert [p.get_title() for p in panels[:5]] == titles
    for s in range(2):
        for t in range(5):
            heat = np.asarray(panels[5 * (s + 1) + t].images[1].get_array())
            assert heat.mean() == pytest.approx(1)
            expected = (maps[t, s] / maps[t, s].mean()).view(4, 4)
            np.testing.assert_allclose(heat, expected, rtol=1e-5)
        # What is left goes to the slots of the same frame.
        on_patches = maps[:, s].sum(-1).mean()
        assert panels[5 * (s + 1)].get_ylabel() == (
            f"slot {s + 1}, pretrained\n{on_patches:.0%} of attention on\nits frame's patches"
        )


# --- Curves --------------------------------------------------------------------------------------

RECORDS = [
    *(
        dict(stage="pretrain", step=i, clips=16 * i, loss=1 / i, lr=1e-3, clips_per_second=40.0,
             data_wait=0.01)
        for i in range(1, 201)
    ),
    dict(stage="finetune", step=5, clips=80, loss=3.5, lr=1e-3, clips_per_second=30.0),
    dict(stage="finetune", step=5, clips=80, val_top1=0.05, val_top5=0.2, val_l1=3.0),
    dict(stage="finetune", step=10, clips=160, val_top1=0.10, val_top5=0.3, val_l1=2.5),
    dict(stage="scratch", step=10, clips=160, val_top1=0.03, val_top5=0.1, val_l1=3.2),
]  # fmt: skip
CHANCE = {"val_top1": 1 / 36, "val_top5": 5 / 36, "val_l1": 35 / 9}


def lines(figure: Any, title: str) -> dict[str, list[tuple[float, float]]]:
    (axes,) = (a for a in figure.axes if a.get_title() == title)
    drawn = (line for line in axes.lines if not line.get_label().startswith("_"))
    return {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in drawn
    }


def test_curves_put_every_figure_over_clips(figures: list[Any]) -> None:
    plots.curves_picture("unused", RECORDS, CHANCE)
    figure = figures[0]
    assert [a.get_title() for a in figure.axes] == [
        "Pretraining loss", "Finetuning loss", "Validation accuracy", "Validation L1",
        "Learning rate", "Speed",
    ]  # fmt: skip
    assert all(a.get_xlabel() and a.get_ylabel() and a.get_legend() for a in figure.axes)
    assert lines(figure, "Validation accuracy") == {
        "finetune, top-1": [(80, 0.05), (160, 0.10)],
        "scratch, top-1": [(160, 0.03)],
        "finetune, top-5": [(80, 0.2), (160, 0.3)],
        "scratch, top-5": [(160, 0.1)],
    }
    assert lines(figure, "Finetuning loss") == {"finetune": [(80, 3.5)]}
    assert set(lines(figure, "Learning rate")) == {"pretrain", "finetune"}
    accuracy = figure.axes[2]
    dashed = [line.get_ydata()[0] for line in accuracy.lines if line.get_linestyle() == "--"]
    assert dashed == [1 / 36, 5 / 36]


def test_the_moving_average_stands_over_the_middle_of_its_window(figures: list[Any]) -> None:
    records = [dict(stage="pretrain", clips=10 * i, loss=float(i)) for i in range(225)]
    plots.curves_picture("unused", records)
    (points,) = lines(figures[0], "Pretraining loss").values()  # a straight line stays itself
    assert len(points) == 225 - 9 + 1
    np.testing.assert_allclose([y for _, y in points], [x / 10 for x, _ in points], rtol=1e-9)


def test_curves_of_an_action_task_have_only_their_panels(figures: list[Any]) -> None:
    records = [dict(stage="finetune", step=1, clips=8, val_map=0.3)]
    plots.curves_picture("unused", records, {"val_map": 0.2})
    assert [a.get_title() for a in figures[0].axes if a.get_visible()] == ["Validation mAP"]


# --- Classes -------------------------------------------------------------------------------------


def answers(labels: list[int], guesses: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(labels), 5 * torch.eye(36)[guesses]


def test_answers_say_whether_they_are_correct_and_how_far_away(figures: list[Any]) -> None:
    frames = torch.zeros(3, 7, 3, 8, 8, dtype=torch.uint8)
    labels, logits = answers([5, 0, 14], [5, 35, 15])
    plots.answers_picture("unused", frames, labels, logits, [True, False, True])
    panels = np.array(figures[0].axes, dtype=object).reshape(3, 5)
    certain = f"(probability {np.exp(5) / (np.exp(5) + 35):.0%})"
    assert [p.get_title().split("\n") for p in panels[:, 4]] == [
        ["correct", certain], ["incorrect, 10 cells away", certain],
        ["incorrect, 1 cell away", certain],
    ]  # fmt: skip
    assert [p.get_ylabel().split()[-1] for p in panels[:, 0]] == ["hidden", "visible", "hidden"]
    assert [p.get_title() for p in panels[0, :4]] == [
        "frame 1", "frame 3", "frame 5", "frame 7, the last",
    ]  # fmt: skip


def test_the_floor_is_seen_from_the_camera(figures: list[Any]) -> None:
    # CATER's camera stands at +x, -y: the cell (5, 0) is the nearest, (0, 5) the farthest.
    frames = torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)
    labels, logits = answers([5, 30], [30, 0])
    plots.answers_picture("unused", frames, labels, logits, [False, False])
    for row, (height, guess) in enumerate([(-6, (6, 5)), (6, (1, 0))]):
        axes = figures[0].axes[5 * row + 4]
        (outline,), (cross,), (mesh,) = axes.patches, axes.lines, axes.collections
        assert max(outline.get_xy()[:, 1], key=abs) == height
        assert (cross.get_xdata()[0], cross.get_ydata()[0]) == guess
        y, x = np.unravel_index(np.asarray(mesh.get_array()).argmax(), (6, 6))
        corners = mesh.get_coordinates()[y : y + 2, x : x + 2]
        assert tuple(corners.mean(axis=(0, 1))) == guess


# --- Probes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrained, all frames", "finetuned, frame alone"])
def test_the_probes_report_tells_of_memorised_clips(tmp_path: Path, kind: str) -> None:
    scores = {"snitch's cell": {"hidden": {kind: Score(0.5, 0.4, 0.6, 1 / 36)}}}
    probe_report.write(tmp_path, "RUN", "a run", scores, (15, 10), {})
    told = "fitted on clips that the finetuned model was finetuned on"
    assert (told in (tmp_path / "probes.md").read_text()) == kind.startswith("finetuned")


@pytest.mark.filterwarnings("error")
def test_names_in_any_letters_make_a_picture(tmp_path):
    """The font has a box for what it lacks, and nobody is warned of it."""
    figure = new_figure(1, 1)
    figure.suptitle("Häuser 猫")
    save(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size
