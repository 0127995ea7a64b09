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
    memory = fsspec.filesystem("memory", use_listings_cache=False)  # the instance in use
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


def test_a_file_that_keeps_its_size_is_followed(bucket, tmp_path, monkeypatch):
    """By its version."""
    find, version = bucket.find, "one"

    def tell(*arguments, **options):
        found = find(*arguments, **options)
        return {path: {"size": about["size"], "ETag": version} for path, about in found.items()}

    monkeypatch.setattr(bucket, "find", tell)
    config = DataConfig("videos:memory://bucket/clips", data_dir=tmp_path / "data")
    file = open_dataset(config).root / "up" / "a.avi"
    changed = file.read_bytes()[::-1]
    bucket.pipe("/bucket/clips/up/a.avi", changed)
    version = "two"
    open_dataset(config)
    assert file.read_bytes() == changed


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
    for source, reason in (
        ("videos:memory://bucket/none", "/bucket/none: expected a folder with files, got none"),
        ("videos:nonsense://bucket", "nonsense://bucket: Protocol not known"),
        ("csv:memory://bucket/other.csv", "^memory://bucket/other.csv: .*no such file"),
    ):
        with pytest.raises(UserError, match=rf"{reason}") as error:
            open_dataset(replace(config, source=source))
        assert "\n" not in str(error.value)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAULTS = [
    (FULL, OSError, "No space left"),
    (PermissionError(errno.EACCES, "no such right"), UserError, "clips: .*no such right"),
    (None, UserError, "c.avi: expected .* bytes, got 1,000"),
]


@pytest.mark.parametrize(("fault", "error", "reason"), FAULTS)
def test_a_download_that_stops_is_not_kept(bucket, tmp_path, monkeypatch, fault, error, reason):
    """It is copied by the next command."""
    config = DataConfig("videos:memory://bucket/clips", data_dir=tmp_path / "data")
    get_file = bucket.get_file

    def cut(source, target, **options):
        get_file(source, target, **options)
        if "c.avi" in str(target):
            os.truncate(target, 1000)
            if fault is not None:
                raise fault

    with monkeypatch.context() as patch, pytest.raises(error, match=reason) as stop:
        patch.setattr(bucket, "get_file", cut)
        open_dataset(config)
    (copy,) = (tmp_path / "data" / "remote").iterdir()
    assert "down/c.avi" not in files(copy)
    assert fault is not FULL or stop.value.filename.startswith(str(copy))
    assert len(files(open_dataset(config).root)) == 4
