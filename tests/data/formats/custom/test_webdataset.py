"""``webdataset:PATTERN``: shards as the ``webdataset`` package writes them, whole and damaged."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from ivcl_fast.data.formats.custom.webdataset import WebDataset, find_shards, read_shard, split_of
from ivcl_fast.errors import UserError


def shard(path: Path, files: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(count: int, first: int = 0) -> dict[str, bytes | str]:
    return {
        f"d/{n:04d}.{ext}": content
        for n in range(first, first + count)
        for ext, content in (("mp4", f"video {n}"), ("cls", str(n % 2)))
    }


def test_patterns(tmp_path, monkeypatch):
    names = [f"train-{n:03d}.tar" for n in range(8, 12)] + ["val-0.tar"]
    for name in names:
        shard(tmp_path / name, {})
    made = {
        "train-{008..011}.tar": names[:4],
        "{train-010,val-0}.tar": [names[2], names[4]],
        "*-0??.tar": names[:4],
        "train-01[01].tar": names[2:4],
    }
    for pattern, expected in made.items():
        assert [path.name for path in find_shards(f"{tmp_path}/{pattern}")] == expected
    with pytest.raises(UserError, match=r"train-012.tar: expected tar files"):
        find_shards(f"{tmp_path}/train-{{008..012}}.tar")
    (tmp_path / "[a]").mkdir()
    shard(tmp_path / "[a]" / "0.tar", {})
    assert find_shards(f"{tmp_path}/[a]/{{0..0}}.tar") == [tmp_path / "[a]" / "0.tar"]
    splits = [
        split_of(tmp_path / name) for name in ("a_train_1.tar", "Validation-3.tar", "vale.tar")
    ]
    assert splits == ["train", "val", "train"]
    assert split_of(tmp_path / "test" / "000.tar") == "test"
    assert split_of(tmp_path / "my_test" / "000.tar") == "train"
    (tmp_path / "test").mkdir()
    monkeypatch.chdir(tmp_path / "test")
    assert split_of(Path("000.tar")) == "test"


def test_samples_of_every_kind(tmp_path):
    files: dict[str, bytes | str] = {
        "__meta__": "x",
        "a.mp4": b"A", "a.cls": "7\n", "a.txt": "a caption",
        "b.c/b.video.webm": b"B", "b.c/b.json": json.dumps({"label": "dog"}),
        "c.0002.jpg": b"c2", "c.0010.jpg": b"c10", "c.0001.jpg": b"c1", "c.cls": "cat",
        "d.gif": b"D", "d.json": json.dumps({"labels": [3, "x"], "n": 1}),
        "e.txt": "no video", "f.MP4": b"F",
    }  # fmt: skip
    found = list(read_shard(shard(tmp_path / "s.tar", files)))
    assert found == [
        ("a.mp4", [(".mp4", b"A")], ("7",)),
        ("b.c/b.video.webm", [(".webm", b"B")], ("dog",)),
        ("c", [(".jpg", b"c1"), (".jpg", b"c2"), (".jpg", b"c10")], ("cat",)),
        ("d.gif", [(".gif", b"D")], ("3", "x")),
        ("f.mp4", [(".mp4", b"F")], ()),
    ]
    with tarfile.open(tmp_path / "s.tar") as tar, gzip.open(tmp_path / "s.tgz", "wb") as packed:
        packed.write((tmp_path / "s.tar").read_bytes())
        assert tar.getnames()
    assert list(read_shard(tmp_path / "s.tgz")) == found


def texts(dataset: WebDataset) -> dict[str, str]:
    return {one.name: one.files[0].read_text() for one in dataset.media()}


def test_shards_are_unpacked_once_and_again_if_they_changed(tmp_path):
    for n in range(2):
        shard(tmp_path / f"s-{n}.tar", samples(4, 4 * n))

    def opened() -> dict[str, int]:
        dataset = WebDataset(tmp_path / "s-{0..1}.tar")
        assert dataset.root == tmp_path / "s-data" and dataset.num_classes == 2
        found = texts(dataset)
        assert found == {f"s-{n // 4}.tar/d/{n:04d}.mp4": f"video {n}" for n in range(len(found))}
        return {str(f): f.stat().st_mtime_ns for f in dataset.root.rglob("*.mp4")}

    first = opened()
    assert len(first) == 8 and opened() == first
    shard(tmp_path / "s-1.tar", samples(3, 4))
    changed = opened()
    assert len(changed) == 7
    same = [name for name in first if changed.get(name) == first[name]]
    assert len(same) == 4 and all("s-0" in name for name in same)


def test_a_shard_that_is_replaced_by_one_of_the_same_size_is_unpacked_again(tmp_path):
    for time, content in enumerate(("old", "new")):
        path = shard(tmp_path / "s.tar", {f"{n}.mp4": content for n in range(3)})
        os.utime(path, (time, time))
        assert {*texts(WebDataset(path)).values()} == {content}


def test_shards_and_samples_of_the_same_name(tmp_path):
    for name, count in (("a/train-0", 6), ("b/train-0", 4), ("b/val-0", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shard(tmp_path / f"{name}.tar", samples(count))
    dataset = WebDataset(tmp_path / "*/*-0.tar")
    names = {split: [clip.name for clip in dataset.clips(split)] for split in dataset.splits}
    assert names["val"] == [f"b/val-0.tar/d/{number:04d}.mp4" for number in range(4)]
    assert len(names["train"]) == len({*names["train"]}) == 10
    assert all(text[6:] == name[-5] for name, text in texts(dataset).items())


def test_names_in_a_shard_cannot_leave_the_folder(tmp_path):
    names = ["../../out.mp4", "/abs.mp4", "a/../../b.mp4"]
    root = tmp_path / "deep" / "place"
    root.mkdir(parents=True)
    shard(root / "s.tar", {name: b"x" for name in names})
    dataset = WebDataset(root / "s.tar")
    assert {one.name for one in dataset.media()} == {
        f"s.tar/{name}.mp4" for name in ("out", "abs", "b")
    }
    written = {path for path in tmp_path.rglob("*.mp4")}
    assert len(written) == 3 and all(path.is_relative_to(dataset.root) for path in written)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(UserError, match=f"webdataset: {path}: .*{reason}"):
        list(read_shard(path))


@pytest.mark.parametrize("end", [512, 9000, 9728])
def test_a_shard_without_its_end_is_refused(end, tmp_path):
    """Samples take 2,048 bytes each; the last video ends with zeros at 9,728."""
    path = shard(tmp_path / "s.tar", samples(3) | {"d/9.mp4": bytes(3072)})
    os.truncate(path, 10752)  # two blocks of zeros, without padding
    assert len(list(read_shard(path))) == 4
    os.truncate(path, end)
    refused(path, "expected a complete tar file")


@pytest.mark.parametrize("damage", ["header", "joined", "link"])
def test_a_shard_that_tarfile_would_read_in_part_is_refused(damage, tmp_path):
    """Python takes a damaged header, and the end of the first of two joined files, for the end."""
    path = shard(tmp_path / "s.tar", samples(4))
    contents = bytearray(path.read_bytes())
    if damage == "header":
        contents[3 * 2048 + 100] ^= 1
    elif damage == "joined":
        contents = contents * 2
    path.write_bytes(contents)
    if damage == "link":
        with tarfile.open(path, "a") as tar:
            link = tarfile.TarInfo("9.mp4")
            link.type, link.linkname = tarfile.LNKTYPE, "d/0000.mp4"
            tar.addfile(link)
    refused(path, "9.mp4 is a link" if damage == "link" else "damaged after byte .*, or two files")


@pytest.mark.parametrize(
    "pattern",
    ["a-{0..99999999999}.tar", "a-{0..999999}{0..999999}.tar", "pipe.tar", "a-{0..9"],
)
def test_patterns_that_would_hang(pattern, tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="webdataset: "):
        find_shards(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.mp4": b"", "a.json": "{"}, "s.tar: the label of a: "),
        ({"a.mp4": b"", "a.cls": b"\xff"}, "s.tar: the label of a: "),
        ({"a.mp4": b"", "a.json": '{"label": {"x": 1}}'}, "the label of a: expected a number"),
        ({"a.mp4": b"", "a.avi": b""}, "s.tar: a: expected one video, got 2"),
        ({"a.txt": b""}, "expected videos, got none"),
    ],
)
def test_samples_that_cannot_be_used(files, reason, tmp_path):
    shard(tmp_path / "s.tar", files)
    with pytest.raises(UserError, match=reason):
        WebDataset(tmp_path / "s.tar")
