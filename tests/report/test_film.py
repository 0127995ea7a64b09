"""Pictures, animations and mask files, read back."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ivcl_fast import SlotAutoencoder, reference
from ivcl_fast.analysis.clips import SnitchTrajectory
from ivcl_fast.errors import UserError
from ivcl_fast.report.clips import MASKED_GRAY, Layer, reconstruction
from ivcl_fast.report.film import GRAY, PANEL, RED, as_rle, floor, write_film, write_masks
from tests.report.test_page import clip_named, models
from tests.support.small_models import config, random_video


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Three pictures, the last of which has a small bright spot."""
    drawn = [Image.new("RGB", (101, 60), "white") for _ in range(3)]
    for number, picture in enumerate(drawn):
        ImageDraw.Draw(picture).text((4, 4), str(number), "black")
    drawn[2].paste((250, 200, 20), (50, 30, 54, 34))
    return drawn


@pytest.mark.parametrize("suffix", ["png", "gif", "mp4"])
def test_pictures_in_every_format(suffix: str, pictures: list[Image.Image], tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_film(pictures, path)
    if suffix == "mp4":
        with av.open(str(path)) as container:
            shown = [np.asarray(frame.to_image()) for frame in container.decode(video=0)]
        assert len(shown) == 3 and shown[0].shape == (60, 100, 3)
        assert np.abs(shown[0].astype(int) - shown[2]).max() > 100
    elif suffix == "png":
        expected = np.concatenate([np.asarray(picture) for picture in pictures])
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    else:
        gif = Image.open(path)
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (3, 0, 500)
        gif.seek(2)
        pixels = np.asarray(gif.convert("RGB")).astype(int)
        assert np.abs(pixels - [250, 200, 20]).max(axis=-1).min() < 20


def test_the_floor_has_the_likeliest_cell_and_numbers_below_its_edges() -> None:
    belief = [1.0 if cell == 6 else 0.1 for cell in range(9)]  # column 0, row 2: at the top
    picture = np.asarray(floor(SnitchTrajectory(3, [belief], None, None), 0)).astype(int)
    red = np.argwhere(np.abs(picture - RED).max(axis=-1) < 30)
    assert abs(red.mean(axis=0)[1] - PANEL / 2) < 2 and red[:, 0].max() < PANEL / 2
    edge = [(np.abs(column - GRAY).max(axis=-1) < 30).nonzero()[0].max() for column in
            picture.transpose(1, 0, 2)[20:-20]]  # fmt: skip
    below = [picture[last + 4 :, 20 + at].min() for at, last in enumerate(edge)]
    half = len(below) // 2
    assert min(below[:half]) < 200 and min(below[half:]) < 200


def test_layers_lie_over_gray_frames_or_replace_them() -> None:
    frames = torch.rand(2, 3, 4, 4)
    overlay = torch.tensor([1.0, 0, 0, 0.25]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    first, second = Layer("slot 1", "", overlay, [0, None]).over(frames)
    gray = 0.75 * frames[0].mean(dim=0)
    torch.testing.assert_close(first, torch.stack([0.25 + gray, gray, gray]))
    torch.testing.assert_close(second, 0.3 * frames[1])


@pytest.mark.parametrize("objective", ["ivcl", "mae", "joint"])
def test_reconstruction_shows_the_models_own_frames(objective: str) -> None:
    model, video = reference.IVCL(config(objective=objective)), random_video(1)
    state = torch.get_rng_state()
    with torch.no_grad():
        query, layers = reconstruction(model, video, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        out = model(video, seed=reference.stream(torch.tensor(5), 1))
    assert torch.equal(query, out.query[0])
    (_, _, given), (_, _, rebuilt), (_, note, error) = layers
    torch.testing.assert_close(rebuilt, model.reconstruct(video, out)[0])
    masked = reference.patchify((given == MASKED_GRAY).float(), 4).all(-1)
    for at, frame in enumerate(query.tolist()):
        assert masked[at].nonzero().flatten().tolist() == out.ids_mask[0, frame].tolist()
    assert reference.patchify(error, 4)[~masked].max() < 0.02  # black: the input's own pixels
    mean = (rebuilt - video[0, query] / 255).abs()[given == MASKED_GRAY].mean()
    assert f"masked pixels {mean:.3f}" in note


# --- Masks ---------------------------------------------------------------------------------------


def test_masks_of_slots_are_indexed_pictures_and_run_lengths(tmp_path: Path) -> None:
    model = SlotAutoencoder(config(objective="slot_attention", num_slots=2))
    shares = torch.zeros(1, 5, 3, 16, 16)
    shares[:, :, 0, :6], shares[:, :, 1, 6:8], shares[:, :, 2, 8:] = 1, 1, 1
    model.draw = lambda video: (torch.rand(1, 5, 3, 16, 16), shares)  # type: ignore[method-assign]
    write_masks({"pretrained": model}, clip_named("clip"), tmp_path)
    pictures = sorted((tmp_path / "clip").iterdir())
    assert [path.name for path in pictures] == [f"0000{i}.png" for i in range(5)]
    with Image.open(pictures[4]) as picture:
        assert picture.mode == "P" and picture.getpalette()[:3] == [0, 0, 0]
        indices = np.asarray(picture)
    assert (indices[:6] == 1).all() and (indices[6:8] == 2).all() and not indices[8:].any()
    found = json.loads((tmp_path / "clip.json").read_text())
    first, second = found["annotations"]
    assert first["areas"] == [96] * 5 and second["areas"] == [32] * 5
    assert [one["name"] for one in found["categories"]] == ["slot 1", "slot 2"]
    assert second["segmentations"][0] == as_rle(torch.from_numpy(indices == 2))
    with pytest.raises(UserError, match="--masks: expected a model pretrained with"):
        write_masks(models(3), clip_named("clip"), tmp_path)


def test_runs_go_down_the_columns_and_begin_with_zeros() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()
    assert as_rle(mask) == {"size": [2, 3], "counts": [0, 1, 1, 2, 2]}
    assert as_rle(~mask) == {"size": [2, 3], "counts": [1, 1, 2, 2]}
    assert as_rle(mask[:, :1] & False) == {"size": [2, 1], "counts": [2]}
