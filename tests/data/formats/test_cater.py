"""The reader of CATER, and malformed files."""

from __future__ import annotations

import json

import pytest

from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.data.formats.cater import TASKS, Cater, report_repeats
from ivcl_fast.errors import UserError


@pytest.fixture
def root(tmp_path):
    for folder in ("videos", "scenes", "lists"):
        (tmp_path / folder).mkdir()
    return tmp_path


def write_list(root, text: str, task: str = "localize", split: str = "train") -> None:
    folder = root / "lists" / task
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.txt").write_text(text)


def test_bare_names_and_full_paths(root):
    """Released lists contain names; generated lists contain paths of another machine."""
    write_list(root, "CATER_new_000001.avi 7\n/home/me/my data/images/CLEVR_new_000002.avi 35\n")
    assert Cater(root).clips("train") == [
        Clip("CATER_new_000001", "CATER_new_000001", 7),
        Clip("CLEVR_new_000002", "CLEVR_new_000002", 35),
    ]


def test_several_labels_and_none(root, caplog):
    caplog.set_level("INFO")
    write_list(root, "a.avi 2,8,9,13\nb.avi \nc.avi\n\nd.avi 0\n", "actions_present")
    data = Cater(root, "actions_present")
    assert data.multi_label
    assert [(c.name, c.label) for c in data.clips("train")] == [("a", (2, 8, 9, 13)), ("d", (0,))]
    assert "skipped 2 items without a label" in caplog.text


@pytest.mark.parametrize(
    ("task", "classes"),
    [(t, one.num_classes) for t, one in TASKS.items() if one.target != "numbers"],
)
@pytest.mark.parametrize("split", ["val", "train_subsetT"])
def test_tasks_and_splits(root, task, classes, split):
    write_list(root, f"x.avi {classes - 1}\ny.avi 0\n", task, split)
    data = Cater(root, task)
    label = (classes - 1,) if data.multi_label else classes - 1
    assert data.num_classes == classes and data.clips(split)[0].label == label
    write_list(root, f"x.avi {classes}\n", task, split)
    with pytest.raises(UserError, match=rf"label: expected 0 to {classes - 1}.*, got '{classes}'"):
        data.clips(split)


def test_repeated_items(root, caplog):
    caplog.set_level("INFO")
    write_list(root, "a.avi 3\nb.avi\nold/a.mp4 3\nc.avi 4\n")
    assert Cater(root).clips("train") == [Clip("a", "a", 3), Clip("c", "c", 4)]
    assert "skipped 1 items without a label" in caplog.text
    assert "skipped 1 repeated items" in caplog.text
    write_list(root, "a.avi 3\na.avi 4\n")
    with pytest.raises(UserError, match=r"train.txt, line 2: a has another label"):
        Cater(root).clips("train")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("\n \n", "expected lines of"),
        ("a.avi 1\nb.avi x\n", r"line 2: label: expected 0 to 35, got 'x'"),
        ("a.avi 1,2\n", "line 1: label: expected 0 to 35, got '1,2'"),
        ("a.avi 1 2\n", r"line 1: expected '<video file>.*, got 'a.avi 1 2'"),
        ("a.txt 1\n", r"line 1: expected '<video file>.*, got 'a.txt 1'"),
    ],
)
def test_bad_lists(root, text, what):
    write_list(root, text)
    with pytest.raises(UserError, match=f"train.txt.*{what}"):
        Cater(root).clips("train")


def test_missing_folders_and_lists(root, tmp_path):
    with pytest.raises(UserError, match=r"expected a CATER package .* got no videos/"):
        Cater(tmp_path / "none")
    with pytest.raises(UserError, match=r"expected lists/<task>/<split>\.txt"):
        Cater(root).clips("val")
    with pytest.raises(UserError, match="lists: expected lists of videos, got none"):
        Cater(root).media()
    (root / "videos").rmdir()
    with pytest.raises(UserError, match="got no videos/"):
        Cater(root)


def test_the_videos_of_all_lists(root):
    write_list(root, "b.avi 1\na.avi 2\n")
    write_list(root, "/x/c.avi 1\n", split="val")
    write_list(root, "a.avi 1,2\nd.avi\n", "actions_present")
    assert Cater(root).media() == [Media(n, (root / "videos" / f"{n}.avi",)) for n in "abcd"]


SCENE = {
    "objects": [{"shape": "spl", "instance": "s", "locations": {"0": [0.0, 1.0, 0.3]}}],
    "movements": {"s": [["_slide", None, 0, 20], ["_rotate", None, 20, 20]]},
}


def test_scenes(root):
    data, file = Cater(root), root / "scenes" / "a.json"
    with pytest.raises(UserError, match=r"a\.json: .*; expected a CATER scene"):
        data.scene("a")
    file.write_text(json.dumps(SCENE))
    assert data.scene("a") == SCENE
    file.write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not a JSON file"):
        data.scene("a")
    for changed in (SCENE | {"objects": []}, {"objects": SCENE["objects"]}, []):
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"a\.json: expected a CATER scene with a snitch, got "):
            data.scene("a")


def test_a_package_as_the_generator_writes_it(root):
    (root / "videos").rename(root / "images")
    write_list(root, "/home/me/out/images/CLEVR_new_000001.avi 3\n")
    (one,) = Cater(root).media()
    assert one.files == (root / "images" / "CLEVR_new_000001.avi",)


def test_notes_beside_the_lists_and_odd_bytes_in_them(root):
    (root / "lists" / "localize").mkdir()
    text = b"\xef\xbb\xbfa.avi 3\r\n  b.avi\t4\r\n"
    (root / "lists" / "localize" / "train.txt").write_bytes(text)
    for stray in ("._train.txt", "notes.txt"):
        (root / "lists" / "localize" / stray).write_bytes(b"\0\x05\x16\x07 not a list\xff")
    assert [(clip.name, clip.label) for clip in Cater(root).clips("train")] == [("a", 3), ("b", 4)]
    assert [one.name for one in Cater(root).media()] == ["a", "b"]


def test_converted_videos(root):
    write_list(root, "a.avi 3\nb.avi 4\nc.avi 5\nd.mp4 6\n")
    for name in ("a.mp4", "b.avi", "b.mp4", "d.avi", "d.mp4"):
        (root / "videos" / name).touch()
    found = [one.files[0].name for one in Cater(root).media()]
    assert found == ["a.mp4", "b.avi", "c.avi", "d.mp4"]


def test_scenes_that_occur_again_are_counted_and_left_out(root, capsys):
    videos = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 2.0, "e": 3.0}
    for name, x in videos.items():
        shown = {"shape": "spl", "instance": "Spl_0", "locations": {"0": [x, 0.0, 0.3]}}
        shown |= {"3d_coords": [x, 0.0, 0.3], "pixel_coords": [ord(name), 0, 0.0]}
        scene = {"objects": [shown], "movements": {"Spl_0": [["_slide", None, 0, 9]]}}
        (root / "scenes" / f"{name}.json").write_text(json.dumps(scene))
    write_list(root, "b.avi 1\nc.avi 2\nd.avi 1\ne.avi 3\n")
    write_list(root, "a.avi 2\n", split="val")
    report_repeats(Cater(root))
    said = capsys.readouterr().out
    assert "2 occur again, 1 of them in train and val, such as c in a" in said
    assert [clip.name for clip in Cater(root, drop_duplicates=True).clips("train")] == ["b", "e"]
    assert len(Cater(root).clips("train")) == 4
