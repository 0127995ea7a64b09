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
    """Four videos in two classes, a hidden file, and one outside the folder."""
    memory = fsspec.filesystem("memory", use_listings_cache=False)  # the instance in use
    memory.store.clear()
    for number, name in enumerate(("up/a", "up/b", "down/c", "down/d")):
        video = write_painted(tmp_path / "v.avi", number, 4)
        memory.pipe(f"/bucket/clips/{name}.avi", video.read_bytes())
    memory.pipe("/bucket/clips/.hidden", b"x")
    memory.pipe("/bucket/clips/../x.avi", video.read_bytes())
    yield memory
    memory.store.clear()


def files(folder: Path) -> dict[str, int]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in paths}


def test_a_folder_is_copied_once(bucket, tmp_path):
    config = DataConfig("videos:memory://bucket/clips", data_dir=tmp_path / "data")
    data = open_dataset(config)
    assert data.num_classes == 2 and data.media()[0].name == "down/c.avi"
    assert data.root.parent == tmp_path / "data" / "remote"
    before = files(data.root)
    assert before.keys() == {"up/a.avi", "up/b.avi", "down/c.avi", "down/d.avi"}
    bucket.store.clear()
    assert files(open_dataset(config).root) == before


def test_places_that_cannot_be_read(bucket, tmp_path):
    config = DataConfig("", data_dir=tmp_path)
    for source, reason in (
        ("videos:memory://bucket/none", "/bucket/none: expected a folder with files, got none"),
        ("videos:nonsense://bucket", "nonsense://bucket: Protocol not known"),
    ):
        with pytest.raises(UserError, match=rf"{reason}") as error:
            open_dataset(replace(config, source=source))
        assert "\n" not in str(error.value)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAULTS = [
    (FULL, OSError, "No space left"),
    (PermissionError(errno.EACCES, "no such right"), PermissionError, "no such right"),
    (None, UserError, "c.avi: expected .* bytes"),
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

    with monkeypatch.context() as patch, pytest.raises(error, match=reason):
        patch.setattr(bucket, "get_file", cut)
        open_dataset(config)
    assert len(files(open_dataset(config).root)) == 4
