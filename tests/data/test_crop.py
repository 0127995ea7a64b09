"""Cropped frames: every reader of a video sees the same square of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ivcl_fast import IVCLConfig, load_clip
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.crop import WHOLE, Crop, square_crop
from ivcl_fast.data.datamodule import open_data
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.media import probe
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.frame_store import FrameStore
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


def test_a_part_at_the_end_of_a_frame_stays_inside_it():
    """In pixels, too: rounding moves its place by less than half of one."""
    for height, width in np.random.default_rng(0).uniform(0.3, 1, (2000, 2)).tolist():
        tall, wide, top, left = Crop(1 - height, 1 - width, height, width).placed(32)
        assert top == tall - 32 and left == wide - 32


def test_a_part_of_a_part_is_a_part_of_the_frame():
    part = Crop(0.5, 0.25, 0.5, 0.5).inside(Crop(0.2, 0.4, 0.5, 0.4))
    assert part == pytest.approx((0.45, 0.5, 0.25, 0.2))


@pytest.mark.parametrize("kind", ["mp4", "avi", "turned", "images", "tall"])
def test_the_square_follows_the_upright_frame(tmp_path, kind):
    pictures = bands(tall=kind == "tall")
    if kind == "images":
        for number, one in enumerate(pictures):
            Image.fromarray(one).save(tmp_path / f"{number}.png")
        given = Media("a", tuple(tmp_path / f"{number}.png" for number in range(4)))
    else:
        suffix, codec = ("avi", "mjpeg") if kind == "avi" else ("mp4", "libx264")
        rotation = 90 if kind == "turned" else 0
        given = media(write_video(tmp_path / f"a.{suffix}", pictures, codec, rotation=rotation))
    decoder = make_decoder("pyav", 32)
    crops = [probe(given).square(part) for part in ("start", "center", "end")]
    found = "".join(colour(decoder.decode(given, crop=crop)) for crop in crops)
    assert found == ("BGR" if kind == "turned" else "RGB")  # turned: its right end is on top
    assert probe(given).square("none") == WHOLE


def test_parts_of_parts():
    assert square_crop("center", 50, 50) == square_crop("none", 9, 50) == WHOLE
    assert square_crop("end", 30, 60) == Crop(0.0, 0.5, 1.0, 0.5)
    assert Crop(0.5, 0.5, 0.5, 0.5).inside(Crop(0.0, 0.5, 1.0, 0.5)) == Crop(0.5, 0.75, 0.5, 0.25)


@pytest.fixture
def config(tmp_path) -> DataConfig:
    for name in ("left/a", "left/b", "right/c", "right/d"):
        path = tmp_path / "clips" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, bands(), "libx264")
    return DataConfig(
        f"videos:{tmp_path / 'clips'}", decoder="pyav", workers=1, crop="center", eval_crops=3
    )


@pytest.mark.parametrize("how", ["store", "stream"])
def test_all_readers_agree(config, how):
    data = open_data(replace(config, loader=how), CFG)
    options = dict(batch_size=2, num_frames=3, seed=0)
    found = []
    for loader in data.eval_loaders("val", 2, 3, **options):
        (batch,) = loader.epoch(0)
        found.append(colour(unpatchify(batch.rows, 8)))
    assert found == ["R", "G", "B"] * 2
    (batch,) = data.loader("val", training=False, **options).epoch(0)
    name = data.dataset.clips("val")[0].name
    clip = load_clip(f"{config.source.partition(':')[2]}/{name}", CFG, "pyav", crop="center")
    assert torch.equal(unpatchify(batch.rows[:1], 8), clip)
    (training,) = data.loader("train", training=True, **options).epoch(0)
    assert colour(unpatchify(training.rows, 8)) == "G"  # random crops of a stream are inside


def test_stores_of_other_crops_are_made_before_training(config):
    data = open_data(config, CFG)
    root = Path(config.source.partition(":")[2])
    stores = {path.name: path for path in root.glob("store-*")}
    name = "store-32-p8-pyav"
    assert stores.keys() == {f"{name}-center", f"{name}-start-val-0.2", f"{name}-end-val-0.2"}
    assert len(FrameStore(stores[f"{name}-end-val-0.2"]).names) == 2
    assert len(data.dataset.clips("val")) == 2
    again = open_data(replace(config, crop="none", eval_crops=1), CFG)
    assert again.bad_files_path.parent.name == name


def test_another_choice_of_the_videos_that_are_evaluated(tmp_path):
    for number in range(40):
        path = tmp_path / "ab"[number % 2] / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, bands()[:2], "libx264")
    counts = []
    for fraction in (0.5, 0.1, 0.2):
        config = DataConfig(
            f"videos:{tmp_path}", decoder="pyav", crop="center", eval_crops=3, val_fraction=fraction
        )
        data = open_data(replace(config, workers=1), CFG)
        counts.append(len(data.dataset.clips("val")))
    assert counts[0] > 2 * counts[1] > 0
    assert {path.name for path in tmp_path.glob("store-*-end-*")} == {
        f"store-32-p8-pyav-end-val-{choice}" for choice in (0.5, 0.1, 0.2)
    }


def test_a_store_of_whole_frames_is_not_taken_for_one_of_squares(tmp_path):
    one = media(write_video(tmp_path / "a.mp4", bands(), "libx264"))
    build_store([one], tmp_path / "store", 32, 8, "pyav", 1)
    with pytest.raises(UserError, match=r"a store with crop none, not center; "):
        build_store([one], tmp_path / "store", 32, 8, "pyav", 1, crop="center")


def test_where_a_crop_makes_no_sense(tmp_path):
    with pytest.raises(UserError, match="--eval-crops: expected 1 without --crop center, got 3"):
        DataConfig("videos:x", eval_crops=3).check()
    with pytest.raises(UserError, match=r"crop: expected one of none, .*, got 'left'"):
        load_clip(tmp_path, CFG, crop="left")  # type: ignore[arg-type]
