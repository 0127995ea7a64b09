"""Synthetic CATER on disk: the true format, the same bytes, whatever interrupts the writing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from ivcl_fast.data.formats import cater_labels as labels
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.errors import UserError

SPEC = SyntheticCater(train=5, val=3, seed=7)
TASKS = ("localize", "localize_4x4", "localize_8x8", "actions_present", "actions_order_uniq")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cater(tmp_path_factory.mktemp("cater") / "made", SPEC, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_video(path: Path, size: tuple[int, int], fps: int, frames: int) -> None:
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert container.format.name == "avi"
        assert stream.codec_context.name == "mjpeg"
        assert (stream.width, stream.height) == size
        assert stream.average_rate == fps
        assert stream.frames == frames
        packets = [p for p in container.demux(stream) if p.size]
        assert all(p.is_keyframe for p in packets)
        decoded = [f for p in packets for f in p.decode()]
        assert len(decoded) == frames
        # Motion from beginning to end, on a floor that is grey.
        first, last = (f.to_ndarray(format="rgb24").astype(int) for f in (decoded[0], decoded[-1]))
        assert np.abs(first - last).max() > 50
        assert np.ptp(first[-2:], axis=-1).max() < 12


def test_videos(made: Path) -> None:
    names = [f"CATER_new_{i:06d}" for i in range(8)]
    assert sorted(p.name for p in (made / "videos").iterdir()) == [f"{n}.avi" for n in names]
    assert sorted(p.name for p in (made / "scenes").iterdir()) == [f"{n}.json" for n in names]
    check_video(made / "videos" / "CATER_new_000007.avi", (160, 120), 3, 38)


def test_scenes(made: Path) -> None:
    for index in range(8):
        scene = json.loads((made / "scenes" / f"CATER_new_{index:06d}.json").read_text())
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


def test_lists(made: Path) -> None:
    for task in TASKS:
        lines = {p.stem: p.read_text().splitlines() for p in (made / "lists" / task).iterdir()}
        assert {k: len(v) for k, v in lines.items()} == {
            "train": 5,
            "val": 3,
            "train_subsetT": 4,
            "train_subsetV": 1,
        }
        assert lines["train"] == lines["train_subsetT"] + lines["train_subsetV"]
        for line in lines["train"] + lines["val"]:
            name, label = line.split(" ")
            scene = json.loads((made / "scenes" / name).with_suffix(".json").read_text())
            expected = {
                "localize": lambda s: [labels.localize_label(s)],
                "localize_4x4": lambda s: [labels.localize_label(s, 4)],
                "localize_8x8": lambda s: [labels.localize_label(s, 8)],
                "actions_present": labels.actions_present,
                "actions_order_uniq": labels.actions_order,
            }[task](scene)
            assert [int(part) for part in label.split(",")] == expected


def test_full_size_with_a_moving_camera(tmp_path: Path, made: Path) -> None:
    """The same worlds as the embedded ones, in CATER's own size; labels know no camera."""
    spec = SyntheticCater(size="full", camera="moving", train=1, val=0, seed=7)
    out = write_cater(tmp_path / "full", spec, workers=1)
    check_video(out / "videos" / "CATER_new_000000.avi", (320, 240), 24, 301)
    full, small = (
        json.loads((root / "scenes" / "CATER_new_000000.json").read_text()) for root in (out, made)
    )
    for a, b in zip(full["objects"], small["objects"], strict=True):
        assert len(a["locations"]) == 301
        for k in range(38):
            assert a["locations"][str(round(k * 300 / 37))] == b["locations"][str(k)]
    assert labels.localize_label(full) == labels.localize_label(small)
    assert full["objects"][0]["pixel_coords"] != small["objects"][0]["pixel_coords"]


def test_workers_do_not_change_a_byte(tmp_path: Path, made: Path) -> None:
    calls: list[tuple[int, int]] = []
    out = write_cater(tmp_path / "two", SPEC, 2, lambda done, total: calls.append((done, total)))
    assert contents(out) == contents(made)
    assert calls == [(done, 8) for done in range(9)]


def test_another_seed_makes_other_videos(tmp_path: Path, made: Path) -> None:
    out = write_cater(tmp_path / "other", SyntheticCater(train=1, val=0, seed=8), workers=1)
    name = "videos/CATER_new_000000.avi"
    assert (out / name).read_bytes() != (made / name).read_bytes()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_continued(tmp_path: Path, made: Path, stop: signal.Signals) -> None:
    out = tmp_path / "stopped"
    program = (
        "import sys; from pathlib import Path\n"
        "from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater\n"
        "write_cater(Path(sys.argv[1]), SyntheticCater(train=5, val=3, seed=7), workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(out)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while process.poll() is None and not list(out.glob("scenes/*.json")):
        time.sleep(0.005)
    if stop == signal.SIGKILL:
        process.kill()
    else:  # as a terminal does it: to all of them
        os.killpg(process.pid, stop)
    # The workers hold the other end of this pipe: it ends when they have.
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -stop
    assert not (out / "lists").exists(), "stopped too late to show anything"
    if stop == signal.SIGINT:
        last = output.decode().splitlines()[-1]
        assert re.fullmatch("KeyboardInterrupt: stopped after . of 8 videos; .* continues", last)
        assert output.count(b"Traceback") == 1, "a worker complained"
    assert contents(write_cater(out, SPEC, workers=1)) == contents(made)


def test_whatever_a_kill_leaves_is_made_good(tmp_path: Path, made: Path) -> None:
    out = tmp_path / "left"
    shutil.copytree(made, out)
    (out / "lists").rename(out / "lists.part")
    (out / "lists.part" / "localize" / "val.txt").write_text("CATER_new_0000")
    (out / "scenes" / "CATER_new_000003.json").rename(out / "scenes" / "CATER_new_000003.part")
    (out / "scenes" / "CATER_new_000005.json").unlink()
    video = out / "videos" / "CATER_new_000005.avi"
    video.with_suffix(".part").write_bytes(video.read_bytes()[:1000])
    video.unlink()
    assert contents(write_cater(out, SPEC, workers=1)) == contents(made)


def test_a_complete_folder_is_left_alone(made: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    calls: list[tuple[int, int]] = []
    write_cater(made, SPEC, 2, lambda *call: calls.append(call))
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before
    assert calls == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path, made: Path) -> None:
    before = contents(made)
    with pytest.raises(UserError, match="other settings"):
        write_cater(made, SyntheticCater(train=5, val=3, seed=8))
    assert contents(made) == before
    (tmp_path / "real" / "videos").mkdir(parents=True)
    with pytest.raises(UserError, match="something else"):
        write_cater(tmp_path / "real", SPEC)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="something else"):
        write_cater(tmp_path / "file", SPEC)
    with pytest.raises(UserError, match="cannot write"):
        write_cater(tmp_path / "file" / "below", SPEC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "huge"),
        ("camera", "shaky"),
        ("train", 0),
        ("train", 2.5),
        ("train", True),
        ("val", -1),
        ("seed", -1),
    ],
)
def test_bad_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{field}=.*{value}") as error:
        SyntheticCater(**{field: value})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_bad_number_of_workers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers=0"):
        write_cater(tmp_path / "out", SPEC, workers=0)
    assert not (tmp_path / "out").exists()
