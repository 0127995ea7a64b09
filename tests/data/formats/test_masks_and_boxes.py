"""LA-CATER's boxes and states, and the masks of DAVIS and MOVi, read from small files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from ivcl_fast.data.formats.davis import Davis
from ivcl_fast.data.formats.la_cater import SNITCH, LaCater
from ivcl_fast.data.formats.movi import Movi
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
    dataset = LaCater(la_cater / "test_data", val_fraction=0.5)
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


def example(**features: list[bytes] | list[int]) -> bytes:
    """A ``tf.train.Example``, encoded by protobuf's own code."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3")
    for name, *fields in (
        ("BytesList", ("value", 1, "bytes")), ("Int64List", ("value", 1, "int64")),
        ("Feature", ("bytes_list", 1, ".BytesList"), ("int64_list", 3, ".Int64List")),
        ("Entry", ("key", 1, "string"), ("value", 2, ".Feature")),
        ("Features", ("feature", 1, ".Entry")), ("Example", ("features", 1, ".Features")),
    ):  # fmt: skip
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number)
            added.label = 3 if field == "feature" or "List" in name else 1  # repeated, optional
            if kind[0] == ".":
                added.type_name = kind
            else:
                added.type = {"bytes": 12, "int64": 3, "string": 9}[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    one = message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))()
    for name, values in features.items():
        entry = one.features.feature.add(key=name.replace("__", "/"))
        kind = "bytes_list" if isinstance(values[0], bytes) else "int64_list"
        getattr(entry.value, kind).value.extend(values)
    return one.SerializeToString()


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


@pytest.fixture
def movi(tmp_path: Path) -> Path:
    root = tmp_path / "1.0.0"
    root.mkdir()
    rng = np.random.default_rng(0)
    for split, videos in (("train", 2), ("validation", 1)):
        with (root / f"movi_a-{split}.tfrecord-00000-of-00001").open("wb") as file:
            writer = RecordWriter(file)
            for number in range(videos):
                frames = [png(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(3)]
                masks = [png(np.full((8, 8), number + t, np.uint8)) for t in range(3)]
                numbers = {"metadata__width": [8], "instances__mass": [300, 5]}
                writer.write(example(**numbers, video=frames, segmentations=masks))
    return root


def test_movis_frames_and_masks(movi: Path) -> None:
    opened = parse_source(f"movi:{movi}")[0].open
    for _ in range(2):  # the second time, it is already unpacked
        dataset = opened(movi, "classify")
        assert [len(dataset.clips(split)) for split in dataset.splits] == [2, 1]
        last = dataset.clips("train")[1].name
        assert dataset.masks(last, [0, 1, 2])[:, 3, 3].tolist() == [0, 1, 2]
        assert dataset.masks(dataset.clips("val")[0].name, [0, 1]).tolist()[0][0][0] == -1
        frame = Image.open(dataset.media()[0].files[0])
        assert (frame.size, frame.mode) == ((8, 8), "RGB")


def test_damaged_movi_is_refused_in_one_line(movi: Path) -> None:
    file = movi / "movi_a-train.tfrecord-00000-of-00001"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="ends within a record"):
        Movi(movi)
    with file.open("wb") as opened:
        RecordWriter(opened).write(example(video=[b"1"]))
    with pytest.raises(UserError, match="expected a record of MOVi"):
        Movi(movi)
    file.write_bytes(content[:12] + bytes(range(1, 250)) * 99)
    with pytest.raises(UserError, match="expected a record of MOVi"):
        Movi(movi)
    assert not (movi.parent / "1.0.0-data").exists()
    with pytest.raises(UserError, match="expected files"):
        Movi(movi.parent)
