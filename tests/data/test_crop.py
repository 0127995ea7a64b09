"""Cropped frames: every reader of a video sees the same square of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ivcl_fast import IVCLConfig, load_clip
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import open_data
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import unpatchify
from tests.support.painted import media, write_video

CFG = IVCLConfig.preset("tiny", image_size=32, num_frames=3, num_query_frames=2)
RED, GREEN, BLUE = (200, 20, 20), (20, 200, 20), (20, 20, 200)


def bands(frames: int = 4, tall: bool = False) -> list[np.ndarray]:
    """Three squares beside each other, or above each other."""
    squares = [np.full((40, 40, 3), colour, np.uint8) for colour in (RED, GREEN, BLUE)]
    return [np.concatenate(squares, 0 if tall else 1)] * frames


def colour(frames: torch.Tensor) -> str:
    """The colour of all frames ``[..., 3, S, S]``, away from the borders of the squares."""
    inside = frames[..., 4:-4, 4:-4].float()
    mean = inside.mean((*range(frames.dim() - 3), -2, -1))
    assert inside.std((-2, -1)).max() < 12
    return "RGB"[int(mean.argmax())]


@pytest.mark.parametrize("kind", ["mp4", "avi", "turned", "images", "tall"])
def test_the_square_is_the_middle_of_the_upright_frame(tmp_path, kind):
    pictures = bands(tall=kind == "tall")
    if kind == "images":
        for number, one in enumerate(pictures):
            Image.fromarray(one).save(tmp_path / f"{number}.png")
        given = Media("a", tuple(tmp_path / f"{number}.png" for number in range(4)))
    else:
        suffix, codec = ("avi", "mjpeg") if kind == "avi" else ("mp4", "libx264")
        rotation = 90 if kind == "turned" else 0
        given = media(write_video(tmp_path / f"a.{suffix}", pictures, codec, rotation=rotation))
    assert colour(make_decoder("pyav", 32).decode(given, square="center")) == "G"


@pytest.fixture
def config(tmp_path) -> DataConfig:
    for name in ("left/a", "left/b", "right/c", "right/d"):
        path = tmp_path / "clips" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, bands(), "libx264")
    return DataConfig(f"videos:{tmp_path / 'clips'}", decoder="pyav", workers=1, crop="center")


@pytest.mark.parametrize("how", ["store", "stream"])
def test_all_readers_agree(config, how):
    data = open_data(replace(config, loader=how), CFG)
    options = dict(batch_size=2, num_frames=3, seed=0)
    (batch,) = data.loader("val", training=False, **options).epoch(0)
    assert colour(unpatchify(batch.rows, 8)) == "G"
    name = data.dataset.clips("val")[0].name
    clip = load_clip(f"{config.source.partition(':')[2]}/{name}", CFG, "pyav", crop="center")
    assert torch.equal(unpatchify(batch.rows[:1], 8), clip)


def test_each_crop_has_its_own_store(config):
    names = [open_data(replace(config, crop=crop), CFG).folder.name for crop in ("none", "center")]
    assert names == ["store-32-p8-pyav", "store-32-p8-pyav-center"]


def test_unknown_crops_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"crop: expected one of none, .*, got 'left'"):
        load_clip(tmp_path, CFG, crop="left")  # type: ignore[arg-type]
