"""A store in object storage: prepared there, and trained from, as if it were on the disk."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import DataModule, open_data
from ivcl_fast.data.store import remote, shards
from ivcl_fast.data.store.remote import local_store
from ivcl_fast.errors import UserError
from ivcl_fast.prepare import PrepareConfig, StoreFlags, prepare
from tests.data.test_loader import same
from tests.support.painted import write_painted

CFG = IVCLConfig(image_size=32, patch_size=8, num_frames=4, num_query_frames=2)
FLAGS = StoreFlags(image_size=32, patch_size=8, decoder="pyav", verify=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of a server on this machine."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def bucket(request, tmp_path, monkeypatch) -> str:
    """The URL of an empty bucket: in memory, or of the server."""
    monkeypatch.setenv("IVCL_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SHARDS", 3)
    monkeypatch.setattr(remote, "FREE_SHARE", 0)  # on a disk that is nearly full too
    url = f"{request.param}://{uuid.uuid4()}"
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        fsspec.filesystem("s3").mkdir(url)
    return url


@pytest.fixture
def videos(tmp_path) -> Path:
    for number in range(9):
        folder = tmp_path / "videos" / ("train", "val")[number // 6] / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_painted(folder / f"{number}.avi", number, 5 + number)
    return tmp_path / "videos"


def prepared(videos: Path, out: str) -> dict[str, bytes]:
    """Prepare a store, and return its files."""
    prepare(PrepareConfig(f"videos:{videos}", out=out, workers=1, store=FLAGS))
    files = fsspec.open_files(f"{out}/*", use_listings_cache=False)
    return {one.path.rpartition("/")[2]: one.fs.cat_file(one.path) for one in files}


def batches(data: DataModule, start: int = 0) -> list:
    loader = data.loader("train", batch_size=2, num_frames=4, seed=1, training=True)
    return [batch for epoch in range(2) for batch in loader.epoch(epoch, start)]


def forget(tmp_path: Path) -> None:
    """Delete all copies, as on another machine."""
    shutil.rmtree(tmp_path / "cache")
    local_store.cache_clear()


def test_the_same_files_and_batches_as_on_disk(bucket, videos, tmp_path):
    local, url = prepared(videos, str(tmp_path / "local")), f"{bucket}/store"
    assert prepared(videos, url) == local and len(local) >= 2 * 3 + 3
    expected = open_data(DataConfig(f"store:{tmp_path / 'local'}"), CFG)
    forget(tmp_path)
    data = open_data(DataConfig(f"store:{url}"), CFG)
    assert same(batches(data), batches(expected)) and same(batches(data, 1), batches(expected, 1))
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join()
    copied = {path.name: path.read_bytes() for path in local_store(url).glob("*.u8")}
    assert copied == {name: local[name] for name in local if name.endswith(".u8")}
    assert same(batches(open_data(DataConfig(f"store:{url}"), CFG)), batches(expected))


def test_a_changed_video_replaces_its_shard(bucket, videos, tmp_path):
    """Also on another machine, which copies the other shards."""
    before = prepared(videos, f"{bucket}/store")
    forget(tmp_path)
    write_painted(videos / "train" / "a" / "0.avi", 7, 3)
    after = prepared(videos, f"{bucket}/store")
    assert after == prepared(videos, str(tmp_path / "local"))
    kept = {name for name in before.keys() & after.keys() if name.endswith(".u8")}
    assert len(kept) == len([name for name in before if name.endswith(".u8")]) - 1


def test_lost_shards_are_one_line(bucket, videos, tmp_path):
    """As after a copy of the store that was interrupted."""
    prepared(videos, f"{bucket}/store")
    forget(tmp_path)
    for file in fsspec.open_files(f"{bucket}/store/*.u8", use_listings_cache=False):
        file.fs.rm_file(file.path)
    with pytest.raises(UserError, match=f"^{bucket}/store: "):
        batches(open_data(DataConfig(f"store:{bucket}/store"), CFG))


def test_what_is_not_there_is_one_line(bucket, tmp_path):
    url = f"{bucket}/nothing"
    with pytest.raises(UserError, match=f"--data: expected a frame store with labels, got {url}"):
        open_data(DataConfig(f"store:{url}"), CFG)
    with pytest.raises(UserError, match="s3://: expected a folder, such as s3://BUCKET/DIR"):
        local_store("s3://")
    with pytest.raises(UserError, match=r"nonsense://x: .*rotocol"):
        open_data(DataConfig("store:nonsense://x"), CFG)
