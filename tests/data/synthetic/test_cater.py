"""The files of a synthetic CATER have the format of CATER's."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np

from ivcl_fast.data.formats import cater_labels as labels
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset

TASKS = ("localize", "localize_4x4", "localize_8x8", "actions_present", "actions_order_uniq")


def check_video(path: Path, size: tuple[int, int], fps: int, frames: int) -> None:
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert (container.format.name, stream.codec_context.name) == ("avi", "mjpeg")
        assert (stream.width, stream.height) == size
        assert (stream.average_rate, stream.frames) == (fps, frames)
        packets = [p for p in container.demux(stream) if p.size]
        assert all(p.is_keyframe for p in packets)
        decoded = [f for p in packets for f in p.decode()]
        assert len(decoded) == frames
        first, last = (f.to_ndarray(format="rgb24").astype(int) for f in (decoded[0], decoded[-1]))
        assert np.abs(first - last).max() > 50


def test_small_videos_have_few_frames(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "small", SyntheticCater(size="small", train=1, val=0), workers=1)
    check_video(out / "videos" / "CATER_new_000000.avi", (128, 96), 1, 16)


def test_scenes(cater: Path) -> None:
    for index in range(8):
        scene = json.loads((cater / "scenes" / f"CATER_new_{index:06d}.json").read_text())
        assert set(scene) == {
            *("split", "image_index", "image_filename", "objects", "directions"),
            *("relationships", "movements"),
        }
        assert scene["image_filename"] == f"CATER_new_{index:06d}.avi"
        objects = scene["objects"]
        assert 5 <= len(objects) <= 10
        assert [(o["shape"], o["size"], o["color"]) for o in objects[:1]] == [
            ("spl", "small", "gold")
        ]
        assert [o["instance"] for o in objects[:3]] == ["Spl_0", "Cone_0", "Cone_1"]
        assert [(o["shape"], o["size"]) for o in objects[1:3]] == [
            ("cone", "medium"),
            ("cone", "large"),
        ]
        for o in objects:
            assert set(o) == {
                *("shape", "size", "sized", "material", "3d_coords", "rotation"),
                *("pixel_coords", "color", "instance", "locations"),
            }
            assert list(o["locations"]) == [str(k) for k in range(38)]
            assert o["locations"]["0"] == o["3d_coords"]
        assert set(scene["movements"]) == {o["instance"] for o in objects}
        for movements in scene["movements"].values():
            for _, other, start, end in movements:
                assert other is None or other in scene["movements"]
                assert 0 <= start < end <= 37
        # Relationships mirror one another, as directions do.
        behind, front = (scene["relationships"][d] for d in ("behind", "front"))
        assert all((j in behind[i]) == (i in front[j]) for i in range(5) for j in range(5))


def test_lists(cater: Path) -> None:
    for task in TASKS:
        lines = {p.stem: p.read_text().splitlines() for p in (cater / "lists" / task).iterdir()}
        assert {k: len(v) for k, v in lines.items()} == {
            "train": 5, "val": 3, "train_subsetT": 4, "train_subsetV": 1,
        }  # fmt: skip
        assert lines["train"] == lines["train_subsetT"] + lines["train_subsetV"]
        for line in lines["train"] + lines["val"]:
            name, label = line.split(" ")
            scene = json.loads((cater / "scenes" / name).with_suffix(".json").read_text())
            expected = {
                "localize": lambda s: [labels.localize_label(s)],
                "localize_4x4": lambda s: [labels.localize_label(s, 4)],
                "localize_8x8": lambda s: [labels.localize_label(s, 8)],
                "actions_present": labels.actions_present,
                "actions_order_uniq": labels.actions_order,
            }[task](scene)
            assert [int(part) for part in label.split(",")] == expected


def test_full_size_with_a_moving_camera(tmp_path: Path, cater: Path) -> None:
    """Full size shows the same worlds as embedded size; labels do not depend on the camera."""
    spec = SyntheticCater(size="full", camera="moving", train=1, val=0, seed=7)
    out = write_dataset(tmp_path / "full", spec, workers=1)
    check_video(out / "videos" / "CATER_new_000000.avi", (320, 240), 24, 301)
    full, small = (
        json.loads((root / "scenes" / "CATER_new_000000.json").read_text()) for root in (out, cater)
    )
    for a, b in zip(full["objects"], small["objects"], strict=True):
        assert len(a["locations"]) == 301
        for k in range(38):
            assert a["locations"][str(round(k * 300 / 37))] == b["locations"][str(k)]
    assert labels.localize_label(full) == labels.localize_label(small)
    assert full["objects"][0]["pixel_coords"] != small["objects"][0]["pixel_coords"]
