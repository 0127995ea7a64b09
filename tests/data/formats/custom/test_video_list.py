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


def lines(tmp_path: Path, *text: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(line.path, line.labels) for line in read_list(written(tmp_path / "l.csv", *text))]


@pytest.mark.parametrize(
    ("line", "path", "labels"),
    [
        ("a.mp4\t3", "a.mp4", ("3",)),
        ("a.mp4\tplaying guitar", "a.mp4", ("playing guitar",)),
        ("frames/a b\t163\tmaking tea", "frames/a b", ("making tea",)),
        ("a.mp4 3", "a.mp4", ("3",)),
        ("a.mp4,3", "a.mp4", ("3",)),
        ("a.mp4, making tea", "a.mp4", ("making tea",)),
        ("my clips/a b.mp4 3", "my clips/a b.mp4", ("3",)),
        ("my clips/a b.MP4,3", "my clips/a b.MP4", ("3",)),
        ('"a, b.mp4",3', "a, b.mp4", ("3",)),
        ("frames/a 163 3,4", "frames/a", ("3", "4")),
        ("two\u2028lines.mp4\tmaking\u2029tea", "two\u2028lines.mp4", ("making\u2029tea",)),
        ("a.avi 2,8,9", "a.avi", ("2", "8", "9")),
        ("a.avi,dog;cat;dog", "a.avi", ("dog", "cat")),
        ("frames/a 163 3", "frames/a", ("3",)),
        ("frames/a,3", "frames/a", ("3",)),
        ("frames/a 3", "frames/a", ("3",)),
        ("a.mp4", "a.mp4", ()),
        ("my clips/a b.mp4", "my clips/a b.mp4", ()),
        ("a.mp4,video", "a.mp4", ("video",)),
        ("a.mp4,nan", "a.mp4", ()),
        ("a.mp4 NaN", "a.mp4", ()),
    ],
)
def test_lines_of_a_list(line, path, labels, tmp_path):
    assert lines(tmp_path, line) == [(path, labels)]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ('"path","label"', '"my a.mp4","making tea"'),
        ("path\tlabel", "my a.mp4\tmaking tea"),
        ("\tPath\tlabel\tsplit", "0\tmy a.mp4\tmaking tea\t"),
        ("label,path,category", "making tea,my a.mp4,drinks"),
        ("filename,label,path", "1,making tea,my a.mp4"),
        ("path,class,label", "my a.mp4,3,making tea"),
        ("Path;Label;my notes, if any", "my a.mp4;making tea;none"),
    ],
)
def test_names_of_columns(header, line, tmp_path):
    assert lines(tmp_path, header, line) == [("my a.mp4", ("making tea",))]


def test_columns_in_any_order_and_missing_labels(tmp_path):
    text = ("Label, split,path", "x,train,a.mp4", "y;z,Validation,b.mp4", "nan,,c.mp4", ",,d.mp4")
    assert read_list(written(tmp_path / "l.csv", *text)) == [
        ("a.mp4", ("x",), "train"), ("b.mp4", ("y", "z"), "val"),
        ("c.mp4", (), "train"), ("d.mp4", (), "train"),
    ]  # fmt: skip
    assert lines(tmp_path, "path", "my clips/a.mp4") == [("my clips/a.mp4", ())]


def test_blank_lines_comments_and_a_byte_order_mark(tmp_path):
    (tmp_path / "l.txt").write_text("\ufeffa.mp4 1\r\n\r\n# note\r\n,,\r\n  b.mp4 0 \r\n")
    assert [line.path for line in read_list(tmp_path / "l.txt")] == ["a.mp4", "b.mp4"]


def test_labels_in_a_column_with_another_name_are_named(tmp_path, caplog):
    assert lines(tmp_path, "path,,Mood", "a.mp4,0,sad") == [("a.mp4", ())]
    assert "skipped the columns mood" in caplog.text


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


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("constrained_train.csv", "constrained_val.csv"), ("train.train.txt", "train.valid.txt"),
        ("My_Train.csv", "My_Val.csv"), ("TRAINING.TXT", "VALIDATION.TXT"),
    ],
)  # fmt: skip
def test_names_of_the_lists_of_other_splits(train, val, tmp_path):
    written(tmp_path / train, "a.mp4 0", "b.mp4 1")
    written(tmp_path / val, "c.mp4 0", "d.mp4 1")
    dataset = VideoList(tmp_path / train)
    assert [clip.name for clip in dataset.clips("val")] == ["c.mp4", "d.mp4"]


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


def test_the_files_of_ucf(tmp_path):
    written(tmp_path / "classInd.txt", "1 Archery", "2 Bowling")
    written(tmp_path / "trainlist01.txt", "Archery/v_a.avi 1", "Bowling/v_b.avi 2")
    written(tmp_path / "testlist01.txt", "Bowling/v_c.avi", "Archery/v_d.avi")
    dataset = VideoList(tmp_path / "trainlist01.txt")
    assert (dataset.splits, dataset.curve_split) == (("train", "test"), "test")
    named = [dataset.describe(clip.label) for clip in dataset.clips("test")]  # type: ignore[arg-type]
    assert named == ["Bowling", "Archery"]


def test_several_labels_and_none(tmp_path):
    dataset = VideoList(written(tmp_path / "all.txt", *(f"{i}.mp4 {i % 3},7" for i in range(30))))
    assert dataset.multi_label and dataset.num_classes == 4
    assert {c.label for s in dataset.splits for c in dataset.clips(s)} == {(0, 3), (1, 3), (2, 3)}
    dataset = VideoList(written(tmp_path / "none.txt", *(f"{i}.mp4" for i in range(30))))
    assert dataset.num_classes == 0 and 2 < len(dataset.clips("val")) < 12


def test_repeated_lines_count_once(tmp_path):
    """A class of one video stays in training, however often its line occurs."""
    once = [f"{i}.mp4 0" for i in range(10)]
    dataset = VideoList(written(tmp_path / "all.csv", *once, *["only.mp4 1"] * 3))
    assert [clip.name for clip in dataset.clips("train")].count("only.mp4") == 1
    named = VideoList(written(tmp_path / "once.csv", *once, "only.mp4 1"))
    assert dataset.clips("val") == named.clips("val")


LONG = b"a" * 131_073


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "got an empty file"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"clip,action\na.mp4,0\nb.mp4,1\n", "line 1: expected a column of paths"),
        (b"a.mp4 0\nb.mp4\n", "expected a label .* got none for 1 of 2, such as b.mp4"),
        (b"a.mp4,x\nb.mp4,nan\nc.mp4,x\n", "got none for 1 of 3, such as b.mp4"),
        (b"path,label\na.mp4\n", "line 2: expected 2 columns, got 1"),
        (b"a.mp4,0\n,1\n", "line 2: "),
        (b"a.mp4 0\na.mp4 1\nb.mp4 0\nc.mp4 1\n", "a.mp4 has two entries with different labels"),
        (b"a.mp4 0\n/a.mp4 1\nb.mp4 0\n", "two videos have the name a.mp4"),
        (b"path,split\na.mp4,validate\n", "line 2: split: expected one of .* 'validate'"),
        (b"label,youtube_id,time_start\nx,a,1\n", "line 1: expected a column of paths"),
        (b"a.mp4 3\npg/0.mp4 playing guitar\n", "line 2: "),
        (b"frames/a 163 making tea\n", "line 1: "),
        (b"a.mp4 drinking, beer\n", "line 1: "),
        (b"a.mp4 0 100 3\n", "line 1: .* got 'a.mp4 0 100 3'"),
        (b"a.mp4,0,100,3\n", "line 1: "),
        (b"a.mp4\t0.0\t2.5\t3\n", "line 1: "),
        (b"frames/a 10 90 3\n", "line 1: "),
        (b"a.mp4,0\nb.mp4," + LONG, r"line 2: field larger than field limit"),
        (b"a" * 300 + b",0\nb.mp4,0\nb.mp4,1", "b.mp4 has two entries"),
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
    """The same file with two spellings of its path, and in two lists."""
    written(tmp_path / "train.csv", "a.mp4 0", "b.mp4 1", "c.mp4 0", "d.mp4 1")
    written(tmp_path / "val.csv", "x/../a.mp4 0", "b.mp4 1")
    dataset = VideoList(tmp_path / "train.csv")
    assert [clip.name for clip in dataset.clips("train")] == ["c.mp4", "d.mp4"]
    assert [clip.name for clip in dataset.clips("val")] == ["x/a.mp4", "b.mp4"]
    assert "skipped 2 training videos" in caplog.text


def test_classes_without_a_training_video_are_named(tmp_path, caplog):
    written(tmp_path / "train.csv", "a.mp4,Dog", "b.mp4,cat")
    written(tmp_path / "val.csv", "c.mp4,dog", "d.mp4,cat")
    assert VideoList(tmp_path / "train.csv").num_classes == 3
    assert "1 classes of the split val have no training videos: dog" in caplog.text
