"""LA-CATER's boxes and states, and the masks of DAVIS, read from small files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.formats.davis import Davis
from ivcl_fast.data.formats.la_cater import SNITCH, LaCater
from ivcl_fast.data.registry import parse_source
from ivcl_fast.errors import UserError

NAMES = "CATER_new_000000", "CATER_new_000001"


@pytest.fixture
def la_cater(tmp_path: Path) -> Path:
    for part in ("train_data", "test_data"):
        folder = tmp_path / part
        for inside in ("videos", "labels", "containment_and_occlusions"):
            (folder / inside).mkdir(parents=True)
        for name in NAMES:
            (folder / "videos" / f"{name}.avi").touch()
            boxes = {SNITCH: [[32, 24, 64, 120]] * 6, "large_red_cone_metal_Cone_0": [[0] * 4] * 6}
            (folder / "labels" / f"{name}_bb.json").write_text(json.dumps(boxes))
        for file, frames in (
            ("containment_annotations", "2,3,4"),
            ("containment_with_move_annotations", "3"),
            ("visibility_rate_gt_0", "0,4"),
        ):
            # The second video has no such frame, and its line no end.
            text = f"{NAMES[0]}\t{frames}\n{NAMES[1]}\t"
            (folder / "containment_and_occlusions" / f"{file}.txt").write_text(text)
    return tmp_path


def test_la_caters_boxes_and_states(la_cater: Path) -> None:
    dataset = parse_source(f"la-cater:{la_cater}")[0].open(la_cater, "classify")
    assert dataset.num_classes == 0 and dataset.splits == ("train", "test")
    names = [clip.name for clip in dataset.clips("test")]
    assert names == [f"test_data/{name}" for name in NAMES]
    assert dataset.media()[0].files == (la_cater / "test_data/videos/CATER_new_000000.avi",)
    boxes = dataset.boxes(names[0])
    assert boxes[SNITCH].tolist() == [[0.1, 0.1, 0.3, 0.6]] * 6 and len(boxes) == 2
    states = dataset.snitch_states(names[0])
    assert states == ["visible", "occluded", "contained", "carried", "contained", "occluded"]
    assert dataset.snitch_states(names[1]) == ["occluded"] * 6


def test_a_single_split_of_la_cater(la_cater: Path) -> None:
    dataset = LaCater(la_cater / "test_data")
    assert sorted(clip.name for s in dataset.splits for clip in dataset.clips(s)) == list(NAMES)
    assert len(dataset.boxes(NAMES[0])[SNITCH]) == 6


def test_la_cater_is_refused_in_one_line(la_cater: Path) -> None:
    with pytest.raises(UserError, match=r"expected videos/\*\.avi"):
        LaCater(la_cater / "train_data" / "labels")
    states = la_cater / "test_data" / "containment_and_occlusions"
    (states / "containment_annotations.txt").unlink()
    with pytest.raises(UserError, match="no such file"):
        LaCater(la_cater).snitch_states(f"test_data/{NAMES[1]}")


@pytest.mark.parametrize("resolution", ["480p", ""])
def test_davis_masks_are_numbers_of_objects(tmp_path: Path, resolution: str) -> None:
    pixels = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    for video in ("bear", "car"):
        frames, masks = (tmp_path / n / resolution / video for n in ("JPEGImages", "Annotations"))
        frames.mkdir(parents=True), masks.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (3, 2)).save(frames / f"{number:05}.jpg")
        for number in (0, 2):  # as in YouTube-VOS, not all frames have a mask
            mask = Image.fromarray(pixels)
            if video == "bear":
                mask.putpalette([value for n in range(256) for value in (n, 0, 0)])
            mask.save(masks / f"{number:05}.png")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("bear\n")
    dataset = parse_source(f"davis:{tmp_path}")[0].open(tmp_path, "classify")
    names = [[clip.name for clip in dataset.clips(split)] for split in ("train", "val")]
    assert names == [["car"], ["bear"]]
    assert dataset.annotated_frames("bear") == [0, 2]
    masks = dataset.masks("bear", [0, 2])
    assert masks.dtype == np.int64 and masks.tolist() == [[[-1, 0, 1], [-1, 1, -1]]] * 2
    grey = np.array([[0, 255, 255]], np.uint8)  # DAVIS 2016
    Image.fromarray(grey).save(tmp_path / "Annotations" / resolution / "car" / "00000.png")
    assert dataset.masks("car", [0]).tolist() == [[[-1, 0, 0]]]
    with pytest.raises(UserError, match=r"00001\.png: expected the mask"):
        dataset.masks("bear", [1])


def test_davis_needs_masks(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(UserError, match="expected Annotations/"):
        Davis(tmp_path)
