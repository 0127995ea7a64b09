"""Data in object storage, which fsspec's storage in memory stands for."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.registry import open_dataset
from ivcl_fast.errors import UserError
from tests.support.painted import write_painted


@pytest.fixture
def bucket(tmp_path):
    """Four videos in two classes, a list of them, a hidden file, and one outside the folder."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for number, name in enumerate(("up/a", "up/b", "down/c", "down/d")):
        video = write_painted(tmp_path / "v.avi", number, 4)
        memory.pipe(f"/bucket/clips/{name}.avi", video.read_bytes())
    lines = "clips/up/a.avi up\nclips/down/c.avi down\nclips/gone.avi up\n../x.avi down\n"
    memory.pipe("/bucket/train.csv", lines.encode())
    memory.pipe("/bucket/val.csv", b"clips/up/b.avi up\nclips/down/d.avi down\n")
    memory.pipe("/bucket/clips/.hidden", b"x")
    memory.pipe("/bucket/../x.avi", video.read_bytes())
    yield memory
    memory.store.clear()


def files(folder: Path) -> dict[str, int]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in paths}


def test_a_folder_is_copied_and_followed(bucket, tmp_path):
    config = DataConfig("videos:memory://bucket/clips", data_dir=tmp_path / "data")
    data = open_dataset(config)
    assert data.num_classes == 2 and data.media()[0].name == "down/c.avi"
    assert data.root.parent == tmp_path / "data" / "remote"
    before = files(data.root)
    assert before.keys() == {"up/a.avi", "up/b.avi", "down/c.avi", "down/d.avi"}
    open_dataset(config)
    assert files(data.root) == before
    bucket.rm("/bucket/clips/up/b.avi")
    bucket.pipe("/bucket/clips/up/a.avi", bucket.cat("/bucket/clips/up/a.avi"))
    assert files(open_dataset(config, read_only=True).root) == before
    now = files(open_dataset(config).root)
    assert before.keys() - now.keys() == {"up/b.avi"}
    assert {name for name in now if now[name] != before[name]} == {"up/a.avi"}
    (data.root / "down" / "c.avi").unlink()
    assert files(open_dataset(config).root).keys() == now.keys()
    record, precious = data.root / ".fetched.json", tmp_path / "precious"
    precious.write_text("mine")
    record.write_text(record.read_text().replace("up/a.avi", "../../../precious"))
    assert files(open_dataset(config).root).keys() == now.keys() and precious.exists()


def test_a_slash_at_the_end_names_the_same_copy(bucket, tmp_path):
    places = {
        open_dataset(DataConfig(f"videos:memory://bucket/clips{end}", data_dir=tmp_path)).root
        for end in ("", "/")
    }
    assert len(places) == 1


@pytest.mark.parametrize(
    "told", ["ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created"]
)
def test_a_file_that_keeps_its_size_is_followed(bucket, tmp_path, monkeypatch, told):
    """By whatever the storage tells of it."""
    find, version = bucket.find, "one"

    def tell(*arguments, **options):
        found = find(*arguments, **options)
        return {path: {"size": about["size"], told: version} for path, about in found.items()}

    monkeypatch.setattr(bucket, "find", tell)
    config = DataConfig("videos:memory://bucket/clips", data_dir=tmp_path / "data")
    file = open_dataset(config).root / "up" / "a.avi"
    changed = file.read_bytes()[::-1]
    bucket.pipe("/bucket/clips/up/a.avi", changed)
    version = "two"
    open_dataset(config)
    assert file.read_bytes() == changed


def test_places_that_end_alike_have_copies_of_their_own(bucket, tmp_path):
    def opened(name: str) -> Path:
        config = DataConfig(f"videos:memory://{name}/clips", data_dir=tmp_path / "data")
        return open_dataset(config).root

    bucket.copy("/bucket/clips", "/other/clips", recursive=True)
    root = opened("bucket")
    before = files(root)
    assert opened("other") != root and files(root) == before


def test_a_list_brings_the_videos_that_it_names(bucket, tmp_path):
    bucket.pipe("/bucket/clips/other.avi", b"not asked for")
    data = open_dataset(DataConfig("csv:memory://bucket/train.csv", data_dir=tmp_path / "data"))
    assert data.splits == ("train", "val") and len(data.clips("val")) == 2
    copy = data.root.parent
    assert files(copy).keys() == {
        "train.csv", "val.csv",
        *(f"clips/{name}.avi" for name in ("up/a", "up/b", "down/c", "down/d")),
    }  # fmt: skip
    assert not list(tmp_path.rglob("x.avi"))
    bucket.rm("/bucket/val.csv")
    bucket.pipe("/bucket/train.csv", b"clips/up/a.avi up\nclips/down/c.avi down\n" * 2)
    with pytest.raises(UserError, match="got none for val"):
        open_dataset(DataConfig("csv:memory://bucket/train.csv", data_dir=tmp_path / "data"))
    assert not (copy / "val.csv").exists()


def test_a_list_may_have_any_name(bucket, tmp_path):
    bucket.mv("/bucket/train.csv", "/bucket/train.list")
    data = open_dataset(DataConfig("csv:memory://bucket/train.list", data_dir=tmp_path / "data"))
    assert data.num_classes == 2


def test_a_list_brings_folders_of_frames_and_follows_them(bucket, tmp_path):
    for name in ("up/e/0.png", "up/e/1.png", "up/e/notes.txt", "down/f/0.png", "down/f/more/1.png"):
        bucket.pipe(f"/bucket/clips/{name}", name.encode())
    bucket.pipe("/bucket/train.csv", b"clips/up/e up\nclips/down/f down\nclips/up/a.avi up\n")
    config = DataConfig("csv:memory://bucket/train.csv", data_dir=tmp_path / "data")

    def frames() -> dict[str, list[str]]:
        found = open_dataset(config)
        assert all(file.is_file() for one in found.media() for file in one.files)
        return {one.name: [file.name for file in one.files] for one in found.media()}

    first = frames()
    assert first["clips/up/e"] == ["0.png", "1.png"] and first["clips/down/f"] == ["0.png"]
    (copy,) = (tmp_path / "data" / "remote").iterdir()
    assert not {"notes.txt", "more"} & {path.name for path in copy.rglob("*")}
    before = files(copy)
    assert frames() == first and files(copy) == before
    bucket.pipe("/bucket/clips/up/e/10.png", b"new")
    bucket.rm("/bucket/clips/up/e/0.png")
    assert frames() == first | {"clips/up/e": ["1.png", "10.png"]}


def test_places_that_cannot_be_read(bucket, tmp_path):
    config = DataConfig("", data_dir=tmp_path)
    for source, said in (
        ("videos:memory://bucket/none", "cannot be read: no such folder, or it is empty"),
        ("videos:nonsense://bucket", "nonsense://bucket: cannot be read: Protocol not known"),
        ("csv:memory://bucket/other.csv", "^memory://bucket/other.csv: no such file"),
    ):
        with pytest.raises(UserError, match=rf"{said}") as error:
            open_dataset(replace(config, source=source))
        assert "\n" not in str(error.value)


def test_a_full_disk_is_no_error_of_the_storage(bucket, tmp_path, monkeypatch):
    """What was being copied is gone, and copied by the next command."""
    config = DataConfig("videos:memory://bucket/clips", data_dir=tmp_path / "data")
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(source, target, **options):
        Path(target).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as stop:
        patch.setattr(bucket, "get_file", full)
        open_dataset(config)
    (copy,) = (tmp_path / "data" / "remote").iterdir()
    assert stop.value.filename.startswith(str(copy)) and not files(copy)
    open_dataset(config)
    assert files(copy).keys() == {"up/a.avi", "up/b.avi", "down/c.avi", "down/d.avi"}
    error = PermissionError(errno.EACCES, "no such right")
    bucket.pipe("/bucket/clips/up/a.avi", b"changed")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be read: .*right"):
        patch.setattr(bucket, "get_file", full)
        open_dataset(config)
    assert len(files(copy)) == 3


@pytest.mark.parametrize("known", [True, False])
def test_a_download_shorter_than_promised_is_not_kept(bucket, tmp_path, monkeypatch, known):
    """Nor is one that a kill stopped, after which its length is the only hint."""
    config = DataConfig("videos:memory://bucket/clips", data_dir=tmp_path / "data")
    get_file = bucket.get_file

    def cut(source, target, **options):
        get_file(source, target, **options)
        if "c.avi" in str(target):
            os.truncate(target, 1000)
            if not known:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "get_file", cut)
        with pytest.raises(UserError if known else KeyboardInterrupt) as error:
            open_dataset(config)
    assert not known or "c.avi: received 1,000 of " in str(error.value)
    (copy,) = (tmp_path / "data" / "remote").iterdir()
    assert "down/c.avi" not in files(copy)
    assert len(files(open_dataset(config).root)) == 4
