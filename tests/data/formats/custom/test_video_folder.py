"""``videos:DIR``: layouts, classes, splits by folder and by hash."""

from __future__ import annotations

from pathlib import Path

import pytest

from ivcl_fast.data.dataset import Media, describe_splits
from ivcl_fast.data.formats.custom.labelled import Item, hold_out
from ivcl_fast.data.formats.custom.video_folder import VideoFolder, find_videos
from ivcl_fast.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def labels(dataset: VideoFolder, split: str) -> dict[str, str]:
    return {c.name: dataset.describe(c.label) for c in dataset.clips(split)}  # type: ignore[arg-type]


def test_folders_are_classes_and_a_fraction_is_held_out(tmp_path):
    names = [f"{c}/{i}.mp4" for c in ("dog", "cat") for i in range(40)]
    dataset = VideoFolder(touch(tmp_path, *names))
    assert (dataset.task, dataset.num_classes, dataset.multi_label) == ("classify", 2, False)
    assert dataset.splits == ("train", "val") and dataset.curve_split == "val"
    train, val = labels(dataset, "train"), labels(dataset, "val")
    assert {*train, *val} == {*names} and not train.keys() & val.keys()
    assert all(name.startswith(label) for name, label in (train | val).items())
    assert 8 <= len(val) <= 24 and {*val.values()} == {"cat", "dog"}
    assert [one.name for one in dataset.media()] == sorted(names)
    said = f"{len(train)} in train, {len(val)} in val ({len(val) / 80:.0%} held out)"
    assert describe_splits(dataset).endswith(said)


def test_a_new_video_changes_the_split_of_no_other():
    def held(count: int) -> set[str]:
        items = [Item(Media(f"{i}.mp4", ()), ("a",)) for i in range(count)]
        return {item.media.name for item in hold_out(items) if item.split == "val"}

    before, after = held(200), held(220)
    assert 20 < len(before) < 60
    assert before == {name for name in after if int(name[:-4]) < 200}
    assert held(2) and len(held(2)) == 1
    # In every process and every version: what a run has held out, its evaluation measures.
    assert held(20) == {"0.mp4", "7.mp4", "8.mp4", "9.mp4", "16.mp4"}


def test_splits_are_folders(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/2.avi", "validation/a/3.webm", "validation/b/4.gif")
    dataset = VideoFolder(tmp_path)
    assert dataset.splits == ("train", "val")
    assert labels(dataset, "val") == {"validation/a/3.webm": "a", "validation/b/4.gif": "b"}
    assert describe_splits(dataset).endswith("clips: 2 in train, 2 in val")
    touch(tmp_path, "test/a/5.mp4", "test/b/6.mp4")
    dataset = VideoFolder(tmp_path)
    assert (dataset.splits, dataset.curve_split) == (("train", "test", "val"), "val")
    assert labels(dataset, "test") == {"test/a/5.mp4": "a", "test/b/6.mp4": "b"}


@pytest.mark.parametrize(
    "names",
    [
        ["1.mp4", "2.mp4", "3.avi"],
        ["1.mp4", "2.mp4", "more/3.mp4"],
        ["only/1.mp4", "only/2.mp4", "only/3.mp4"],
        ["all/1/0.png", "all/1/1.png", "all/2/0.jpg", "all/3/0.png"],
    ],
)
def test_layouts_without_classes(names, tmp_path):
    dataset = VideoFolder(touch(tmp_path, *names))
    assert dataset.num_classes == 0 and len(dataset.media()) == 3
    clips = [*dataset.clips("train"), *dataset.clips("val")]
    assert len(clips) == 3 and {clip.label for clip in clips} == {()}


def test_a_video_beside_the_folders_is_named(tmp_path, caplog):
    assert VideoFolder(touch(tmp_path, "a/1.mp4", "b/2.mp4", "3.mp4")).num_classes == 0
    assert "read without classes, because videos lie beside its folders, such as 3.mp4" in (
        caplog.text
    )


def test_folders_of_frames_are_videos_in_the_order_of_their_numbers(tmp_path):
    touch(tmp_path, *(f"a/x/{i}.png" for i in range(12)), "a/x/notes.txt", "b/y/1.JPG", "b/z/1.png")
    media = {one.name: [path.name for path in one.files] for one in VideoFolder(tmp_path).media()}
    assert media == {"a/x": [f"{i}.png" for i in range(12)], "b/y": ["1.JPG"], "b/z": ["1.png"]}


def test_what_is_no_video_is_passed_over(tmp_path):
    touch(tmp_path, "a/1.MP4", "a/2.mp4", "b/1.mov", "b/2.mkv", "b/._1.mov", ".trash/c/1.mp4")
    touch(tmp_path, "store-64-p8-pyav/bad_files.json", "index/index.safetensors")
    touch(tmp_path, "cover.jpg", "notes.txt", "a/thumb.jpg")
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    dataset = VideoFolder(tmp_path)
    assert [one.name for one in dataset.media()] == ["a/1.MP4", "a/2.mp4", "b/1.mov", "b/2.mkv"]
    assert dataset.num_classes == 2


def test_runs_are_passed_over(tmp_path):
    """Their pictures are no videos, and they make no class; a user's folder may have their name."""
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in ("cat", "dog") for i in range(2)))
    touch(tmp_path, "runs/compared.png", "sweeps/masking/study.png")
    for run in ("runs/videos-tiny", "sweeps/masking/0.5/seed-0"):
        touch(tmp_path / run, "config.json", "metrics.jsonl", "report.md")
        touch(tmp_path / run, "visualize/a.gif", "probes/probes.png")
    names = ["cat/0.mp4", "cat/1.mp4", "dog/0.mp4", "dog/1.mp4"]
    assert [one.name for one in find_videos(tmp_path)] == names
    assert VideoFolder(tmp_path).num_classes == 2
    touch(tmp_path, "runs/0.mp4", "runs/1.mp4", "runs/2/config.json", "runs/2/2.mp4")
    names += [f"runs/{name}" for name in ("0.mp4", "1.mp4", "2/2.mp4")]
    assert [one.name for one in find_videos(tmp_path)] == names


def test_a_single_video_is_also_validated_on(tmp_path):
    dataset = VideoFolder(touch(tmp_path, "1.mp4"))
    assert [clip.name for clip in dataset.clips("train")] == ["1.mp4"]
    assert dataset.clips("val") == dataset.clips("train") and len(dataset.media()) == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["notes.txt"], "expected files that end in .mp4, .*, got none"),
        (["a/1.mp4", "b/1.mp4"], "expected .* two of a class, got none for val"),
        (["Val/a/1.mp4", "test/b/2.mp4"], "expected train/ beside Val/"),
        (["train/1.mp4", "val/2.mp4", "3.mp4"], "expected all videos in train/, val/, got 3.mp4"),
        (["dog/1.png", "dog/2.png", "cat/1.png"], "got pictures in cat/"),
        (["dog/a.mp4", "cat/b.mp4", "thumbs/1.jpg"], "got pictures in thumbs/"),
        (["1.png", "2.png"], "expected videos, or a folder of frames for each video"),
    ],
)
def test_folders_that_cannot_be_used(names, said, tmp_path):
    """A folder of pictures for each class is not taken for one video of each class."""
    with pytest.raises(UserError, match=f"^(videos:)?{tmp_path}[^ ]*: .*{said}"):
        VideoFolder(touch(tmp_path, *names))


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="/no: expected a folder of videos, got no such folder"):
        VideoFolder(tmp_path / "no")
    touch(tmp_path, "a.mp4")
    with pytest.raises(UserError, match="expected a folder of videos, got a file"):
        VideoFolder(tmp_path / "a.mp4")
