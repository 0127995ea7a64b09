"""``csv:FILE``: tables with a header, and the lists of VideoMAE and UCF."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ivcl_fast.data.clip import find_media
from ivcl_fast.data.formats.custom.video_list import VideoList, read_list
from ivcl_fast.errors import UserError


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def read(tmp_path: Path, *text: str) -> list[tuple[str, tuple[str, ...], str]]:
    items = read_list(written(tmp_path / "l.csv", *text), "train")
    return [(item.media.name, item.labels, item.split) for item in items]


@pytest.mark.parametrize(
    ("line", "path", "labels"),
    [
        ("frames/a b\t163\tmaking tea", "frames/a b", ("making tea",)),
        ("a.mp4 3", "a.mp4", ("3",)), ("a.mp4, making tea", "a.mp4", ("making tea",)),
        ("my clips/a b.MP4,3", "my clips/a b.MP4", ("3",)), ('"a, b.mp4",3', "a, b.mp4", ("3",)),
        ("a.avi,dog;cat;dog", "a.avi", ("dog", "cat")), ("frames/a 163 3", "frames/a", ("3",)),
        ("a.mp4", "a.mp4", ()), ("a.mp4 NaN", "a.mp4", ()),
    ],
)  # fmt: skip
def test_lines_of_a_list(line, path, labels, tmp_path):
    assert read(tmp_path, line, "", "b.mp4") == [(path, labels, "train"), ("b.mp4", (), "train")]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ('"path","label"', '"my a.mp4","making tea"'),
        ("\tPath\tlabel\tsplit", "0\tmy a.mp4\tmaking tea\t"),
        ("label,path,category", "making tea,my a.mp4,drinks"),
        ("label,path,gender", "making tea,my a.mp4,none"),
        ("Path;Label;my notes, if any".replace(",", ""), "my a.mp4;making tea;none"),
    ],
)
def test_names_of_columns(header, line, tmp_path):
    assert read(tmp_path, header, line) == [("my a.mp4", ("making tea",), "train")]


def test_columns_in_any_order_and_missing_labels(tmp_path):
    text = ("\ufeffLabel, split,path", "x,train,a.mp4", "y;z,Validation,b.mp4", ",,", "nan,,c.mp4")
    assert read(tmp_path, *text) == [
        ("a.mp4", ("x",), "train"), ("b.mp4", ("y", "z"), "val"), ("c.mp4", (), "train"),
    ]  # fmt: skip
    assert read(tmp_path, "path", "my clips/a.mp4") == [("my clips/a.mp4", (), "train")]


def test_numbers_are_classes_in_their_order_and_lists_beside_are_splits(tmp_path):
    written(tmp_path / "train.csv", "v/10.mp4 10", "v/9.mp4 9", "v/2.mp4 2")
    written(tmp_path / "val.csv", "v/11.mp4 11", f"{tmp_path}/v/x.mp4 2")
    dataset = VideoList(tmp_path / "train.csv")
    assert dataset.splits == ("train", "val") and dataset.num_classes == 4
    assert [dataset.describe(n) for n in range(4)] == ["2", "9", "10", "11"]
    assert [clip.label for clip in dataset.clips("train")] == [2, 1, 0]
    assert [clip.label for clip in dataset.clips("val")] == [3, 0]
    files = {one.name: one.files[0] for one in dataset.media()}
    assert files["v/10.mp4"] == tmp_path / "v/10.mp4"
    assert all(not name.startswith("/") and ".." not in name for name in files)
    assert dataset.root == tmp_path / "train-data"


def test_a_video_in_two_lines_is_not_held_out_and_trained_on(tmp_path):
    spelled = [f"{'x/../' * n}a.mp4 0" for n in range(20)]
    dataset = VideoList(written(tmp_path / "l.txt", *spelled, "b.mp4 0", "c.mp4 0"))
    places = {one.name: one.files[0].resolve() for one in dataset.media()}
    train, val = ({places[clip.media] for clip in dataset.clips(s)} for s in ("train", "val"))
    assert val and not train & val


def test_a_folder_in_a_list_is_a_video_of_frames(tmp_path):
    """Hidden files, as macOS writes them on the disks of other systems, are no frames."""
    (tmp_path / "f").mkdir()
    for name in ("0.jpg", "._0.jpg", "9.jpg", "10.jpg"):
        (tmp_path / "f" / name).touch()
    media = VideoList(written(tmp_path / "l.txt", "f 3 0", "g.mp4 1", "h.mp4 0", "i.mp4 1")).media()
    assert [path.name for path in media[0].files] == ["0.jpg", "9.jpg", "10.jpg"]
    assert find_media(tmp_path / "f").files == media[0].files


def test_several_labels_and_none(tmp_path):
    dataset = VideoList(written(tmp_path / "all.txt", *(f"{i}.mp4,{i % 3};7" for i in range(30))))
    assert dataset.multi_label and dataset.num_classes == 4
    assert {c.label for s in dataset.splits for c in dataset.clips(s)} == {(0, 3), (1, 3), (2, 3)}
    dataset = VideoList(written(tmp_path / "none.txt", *(f"{i}.mp4" for i in range(30))))
    assert dataset.num_classes == 0 and 2 < len(dataset.clips("val")) < 12


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "got an empty file"),
        (b"\xff\xfe\x00", "utf-8"),
        (b"clip,action\na.mp4,0\nb.mp4,1\n", "expected a column of paths"),
        (b"a.mp4,x\nb.mp4,nan\nc.mp4,x\n", "got none for 1 of 3, such as b.mp4"),
        (b"path,start_time,label\na.mp4,0.5,x\n", "whole videos, got the columns start_time"),
        (b"path,startTime,stop,label\na.mp4,0,1,x\n", "got the columns starttime, stop;"),
        (b"path,label\na.mp4\n", "row 2: expected 2 columns, got 1"),
        (b"a.mp4,0\n,1\n", "line 2: "),
        (b"a.mp4 0\na.mp4 1\nb.mp4 0\nc.mp4 1\n", "a.mp4 has two entries with different labels"),
        (b"a.mp4 0\n/a.mp4 1\nb.mp4 0\n", "two videos have the name a.mp4"),
        (b"path,split\na.mp4,validate\n", "row 2: split: expected one of .* 'validate'"),
        (b"pg/0.mp4 playing guitar\n", "line 1: "),
        (b"a.mp4 0 100 3\n", "line 1: .* got 'a.mp4 0 100 3'"),
        (b"a.mp4\t0.0\t2.5\t3\n", "line 1: "),
    ],
)
def test_lists_that_cannot_be_used(text, where, tmp_path):
    (tmp_path / "l.csv").write_bytes(text)
    with pytest.raises(UserError, match=where) as error:
        VideoList(tmp_path / "l.csv")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.csv", ".", "pipe.csv"])
def test_what_is_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.csv")
    with pytest.raises(UserError, match=r"csv: .*: expected a file"):
        VideoList(Path(name))


def test_videos_that_are_measured_are_not_trained_on(tmp_path, caplog):
    """The same file, with two spellings of its path."""
    written(tmp_path / "train.csv", "a.mp4 0", "b.mp4 1", "c.mp4 0", "d.mp4 1")
    written(tmp_path / "val.csv", "x/../a.mp4 0", "b.mp4 1")
    dataset = VideoList(tmp_path / "train.csv")
    assert [clip.name for clip in dataset.clips("train")] == ["c.mp4", "d.mp4"]
    assert [clip.name for clip in dataset.clips("val")] == ["a.mp4", "b.mp4"]
    assert "skipped 2 training videos" in caplog.text
