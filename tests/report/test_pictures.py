"""What the pictures show, read back from the images and from matplotlib's own objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ivcl_fast import SlotAutoencoder, reference
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.clips import DecodedClip
from ivcl_fast.analysis.trajectory import SnitchTrajectory
from ivcl_fast.report import pictures
from ivcl_fast.report.figures import new_figure, write_gif
from ivcl_fast.report.pictures import animation, curves_figure, evenly_spaced
from tests.support.small_models import config, random_video, sharpened

RECORDS: list[dict[str, Any]] = [
    *(dict(stage="pretrain", step=i, clips=16 * i, loss=1 / i, lr=1e-3) for i in range(1, 51)),
    dict(stage="finetune", step=5, clips=80, loss=3.5, lr=1e-3),
    dict(stage="finetune", step=5, clips=80, val_top1=0.05),
    dict(stage="finetune", step=10, clips=160, val_top1=0.10),
    dict(stage="scratch", step=10, clips=160, val_top1=0.03),
]
CHANCE = {"val_top1": 1 / 36, "val_l1": 35 / 9}


@pytest.fixture
def video() -> Tensor:
    return random_video(clips=2)


def shown(axes: Any) -> Tensor:
    """The image in a cell of a picture, ``[3, H, W]``."""
    return torch.from_numpy(np.asarray(axes.images[0].get_array())).movedim(-1, 0)


# --- Files ---------------------------------------------------------------------------------------


def test_an_animation_keeps_the_colour_of_a_small_spot(tmp_path: Path) -> None:
    figures = [new_figure(2, 1) for _ in range(3)]
    for number, figure in enumerate(figures):
        figure.suptitle(str(number))
    figures[2].add_subplot().imshow([[[250, 200, 20]]])
    write_gif(iter(figures), tmp_path / "slots.gif")
    with Image.open(tmp_path / "slots.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0
        gif.seek(2)
        pixels = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(pixels - [250, 200, 20]).max(axis=-1).min() < 20


# --- Reconstruction ------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["ivcl", "mae", "joint"])
def test_reconstruction_shows_the_models_own_frames(video: Tensor, objective: str) -> None:
    model = reference.IVCL(config(objective=objective))
    state = torch.get_rng_state()
    at, rows = pictures.reconstruction(model, video, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    frames, given, rebuilt, error = rows.values()

    out = model(video, seed=reference.stream(torch.tensor(5), 2))
    chosen = evenly_spaced(4, out.query.shape[1])
    assert torch.equal(at, out.query[:, chosen])
    expected = model.reconstruct(video, out)[:, chosen]
    torch.testing.assert_close(rebuilt, expected.flatten(0, 1))
    true = video.take_along_dim(at[:, :, None, None, None], dim=1).flatten(0, 1) / 255
    torch.testing.assert_close(frames, true)
    masked = reference.patchify((given == pictures.MASKED_GRAY).float(), 4).all(-1)
    for index, (clip, frame) in enumerate((c, f) for c in (0, 1) for f in at[c].tolist()):
        assert masked[index].nonzero().flatten().tolist() == out.ids_mask[clip, frame].tolist()
    assert reference.patchify(error, 4)[~masked].max() < 0.02  # black: the input's own pixels
    mean = (rebuilt - frames).abs()[(given == pictures.MASKED_GRAY)].mean()
    assert f"masked pixels {mean:.3f}" in list(rows)[3]


def test_the_part_of_each_slot_in_a_frame_is_shown(video: Tensor) -> None:
    model = SlotAutoencoder(config(objective="slot_attention", num_slots=1))
    shares = torch.zeros(2, 5, 2, 16, 16)
    shares[:, :, 0, :6], shares[:, :, 1, 6:] = 1, 1
    model.draw = lambda video: (torch.rand(2, 5, 3, 16, 16), shares)  # type: ignore[method-assign]
    at, rows = pictures.segments(model, video)
    assert list(rows) == ["input", "reconstruction", "slot 1", "background"]
    frames = torch.cat([video[clip, at[clip]] / 255 for clip in (0, 1)])
    torch.testing.assert_close(rows["input"], frames)
    torch.testing.assert_close(rows["slot 1"][:, :, :6], frames[:, :, :6])
    assert (rows["slot 1"][:, :, 6:] == 1).all() and (rows["background"][:, :, :6] == 1).all()


# --- Slot attention ------------------------------------------------------------------------------


def test_slot_attention_has_a_row_for_each_slot_and_model(
    video: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: kept.append(figure))
    clip = DecodedClip("clip", [*range(5)], dict(enumerate(video[0])), fps=2.0)
    model = sharpened(reference.IVCL(config()))
    maps = {"pretrained": slot_attention(model, video)[0], "finetuned": torch.rand(5, 2, 16) / 16}
    pictures.draw_attention(Path("unused"), clip, maps, "in words")
    cells = np.array(kept[0].axes).reshape(5, 5)
    assert [cell.get_title() for cell in cells[0]] == [
        f"frame {t + 1}\n{t / 2:.1f} s" for t in range(5)
    ]
    rows = [(slot, name) for slot in (0, 1) for name in maps]
    for row, (slot, name) in zip(cells[1:], rows, strict=True):
        share = maps[name][:, slot].sum(-1).mean()
        assert row[0].get_ylabel().startswith(f"slot {slot + 1}, {name}\n{share:.0%} of attention")
        expected = pictures.over_frames(video[0] / 255, maps[name])
        torch.testing.assert_close(shown(row[3]), expected[3, slot])


def test_an_animation_shows_each_slot_and_the_prediction_of_each_frame() -> None:
    """The snitch is one cell further than predicted."""
    maps = {name: torch.rand(3, 2, 16) for name in ("pretrained", "finetuned")}
    frames, titles, cells = torch.rand(3, 3, 8, 8), ["one", "two", "three"], np.arange(3) + 6
    probabilities = np.eye(16, dtype=np.float32)[cells]
    trajectory = SnitchTrajectory([0, 1, 2], probabilities, cells + 1, np.arange(3) > 1)
    for at, figure in enumerate(animation(frames, maps, titles, trajectory)):
        assert figure.get_suptitle() == titles[at]  # type: ignore[attr-defined]
        panels = {axes.get_title(): axes for axes in figure.axes}
        torch.testing.assert_close(shown(panels["input"]), frames[at])
        for name, of_model in maps.items():
            for slot in range(2):
                expected = pictures.over_frames(frames, of_model)[at, slot]
                torch.testing.assert_close(shown(panels[f"slot {slot + 1}, {name}"]), expected)
        floor: Any = panels["predicted cell" + " (hidden)" * (at > 1)]
        (cross,), (outline,) = floor.lines, floor.patches
        row, column = divmod(int(cells[at]), 4)
        assert cross.get_xydata().tolist() == [[column + 0.5, row + 0.5]]
        row, column = divmod(int(cells[at]) + 1, 4)
        assert outline.get_xy() == (column, row)


# --- Curves --------------------------------------------------------------------------------------


def test_curves_put_every_value_over_clips() -> None:
    panels = [axes for axes in curves_figure(RECORDS, CHANCE).axes if axes.get_visible()]
    titles = [axes.get_title() for axes in panels]
    assert titles == ["Loss", "Validation top-1", "Highest learning rate"]
    lines: Any = {line.get_label(): line.get_xydata().tolist() for line in panels[1].lines}
    assert lines["finetune"] == [[80, 0.05], [160, 0.10]] and lines["scratch"] == [[160, 0.03]]
    assert lines["chance"][0][1] == 1 / 36
    assert [line.get_label() for line in panels[0].lines] == ["pretrain", "finetune"]
