"""A store follows its videos: only shards with media that were added, changed or removed change."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.store import index, plan, shards
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.frame_store import FrameStore, write_meta
from ivcl_fast.errors import UserError
from tests.data.store.test_frame_store import contents
from tests.support.painted import media, numbers_of_rows, write_images, write_painted

SIZES = 32, 8
SHARD_BYTES = 12 * 3 * 32**2  # two of the videos below


@pytest.fixture
def videos(tmp_path) -> list[Media]:
    return [media(write_painted(tmp_path / f"v{i}.avi", i, 5)) for i in range(6)]


def build(videos, tmp_path, **options) -> FrameStore:
    options = {"shard_bytes": SHARD_BYTES} | options
    return build_store(videos, tmp_path / "store", *SIZES, "pyav", 1, **options)


def shown(store: FrameStore) -> dict[str, list[tuple[int, int]]]:
    store.verify()
    return {n: numbers_of_rows(store.rows(n, range(store.num_frames(n)))) for n in store.names}


def expected(**numbers: tuple[int, int]) -> dict[str, list[tuple[int, int]]]:
    """Frames by name of the video, each given by its number and number of frames."""
    return {name: [(video, i) for i in range(n)] for name, (video, n) in numbers.items()}


def written(folder: Path, before: dict[str, int]) -> set[str]:
    return {
        path.name for path in folder.glob("*.u8") if before.get(path.name) != path.stat().st_ino
    }


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_ten_videos_added_to_a_thousand(tmp_path):
    """Counts every byte of every file that is not the same file as before."""
    one = write_images(tmp_path, "v0000", 1, 1).files[0]

    def copy(number: int) -> Media:
        path = tmp_path / f"v{number:04d}.png"
        os.link(one, path)
        return Media(path.stem, (path,))

    videos = [copy(number) for number in range(1000)]
    out, options = tmp_path / "store", {"shard_bytes": 2**20}
    build_store(videos, out, 64, 8, "pyav", 1, **options)
    before = inodes(out)
    videos += [copy(number) for number in range(1000, 1010)]
    store = build_store(videos, out, 64, 8, "pyav", 1, **options)
    assert len(store.names) == 1010
    new = [path for path in out.iterdir() if before.get(path.name) != path.stat().st_ino]
    share = sum(path.stat().st_size for path in new) / sum(p.stat().st_size for p in out.iterdir())
    assert share < 0.03


def test_added_changed_removed_and_repaired(videos, tmp_path, monkeypatch, caplog):
    whole = videos[5].files[0].read_bytes()
    videos[5].files[0].write_bytes(whole[:-100])
    store = build(videos[:4] + videos[5:], tmp_path)
    assert shown(store) == expected(v0=(0, 5), v1=(1, 5), v2=(2, 5), v3=(3, 5))
    assert list(store.bad_files) == ["v5"]
    opened = FrameStore(store.path)  # as in a training that goes on
    probed: list[str] = []
    monkeypatch.setattr(plan, "probe_media", spy(probed))

    before = inodes(store.path)
    store = build(videos, tmp_path)
    assert list(shown(store)) == ["v0", "v1", "v2", "v3", "v4"]
    assert probed == ["v4"] and written(store.path, before) == {"shard-00002.u8"}

    probed.clear()
    videos[5].files[0].write_bytes(whole)
    assert list(shown(build(videos, tmp_path))) == [f"v{i}" for i in range(6)]
    assert probed == ["v5"] and not build(videos, tmp_path).bad_files

    probed.clear()
    before = inodes(store.path)
    write_painted(videos[1].files[0], 9, 3)
    found = shown(build([videos[0], *videos[1:3], *videos[4:]], tmp_path))
    numbers = dict(v0=(0, 5), v1=(9, 3), v2=(2, 5), v4=(4, 5), v5=(5, 5))
    assert found == expected(**numbers)
    assert probed == ["v0", "v1", "v2"]  # v0 and v2 shared a shard with v1 and v3
    assert written(store.path, before) == {"shard-00004.u8", "shard-00005.u8"}
    assert not {"shard-00000.u8", "shard-00001.u8"} & set(inodes(store.path))
    assert numbers_of_rows(opened.rows("v3", [4])) == [(3, 4)]


def spy(names: list[str]):
    def probe_media(media, pool, probe_one, *report):
        if probe_one is plan.probe:  # it also compares files
            names.extend(one.name for one in media)
        return index.probe_media(media, pool, probe_one, *report)

    return probe_media


def test_a_download_that_ends_at_the_same_size(videos, tmp_path):
    """The tail was zeros, and the modification time is that of the server, as some tools set it."""
    path = videos[2].files[0]
    whole, times = path.read_bytes(), (10**18, 10**18)
    path.write_bytes(whole[:3000] + bytes(len(whole) - 3000))
    os.utime(path, ns=times)
    assert list(build(videos, tmp_path).bad_files) == ["v2"]
    path.write_bytes(whole)
    os.utime(path, ns=times)
    store = build(videos, tmp_path)
    assert not store.bad_files and shown(store)["v2"] == [(2, i) for i in range(5)]


def test_every_image_of_a_sequence_is_watched(videos, tmp_path):
    (tmp_path / "new").mkdir()
    old, new = write_images(tmp_path, "p", 7, 4), write_images(tmp_path / "new", "p", 8, 4)
    listed = [videos[0], old]
    assert shown(build(listed, tmp_path)) == expected(v0=(0, 5), p=(7, 4))
    new.files[2].replace(old.files[2])
    assert shown(build(listed, tmp_path))["p"] == [(7, 0), (7, 1), (8, 2), (7, 3)]
    old.files[3].unlink()
    assert list(build(listed, tmp_path).bad_files) == ["p"]


def test_a_copied_data_set_is_compared_and_not_decoded(videos, tmp_path, monkeypatch):
    store = build(videos, tmp_path)
    frames = contents(store.path)
    for one in videos:
        shutil.copyfile(one.files[0], tmp_path / "copy")
        (tmp_path / "copy").replace(one.files[0])
    monkeypatch.setattr(shards, "_build", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(plan, "probe", lambda *_: pytest.fail("probed"))
    now = contents(build(videos, tmp_path).path)
    assert {k for k in now if now[k] != frames[k]} == {"meta.json", "sources.json"}
    assert contents(build(videos, tmp_path).path) == now


def test_videos_that_are_gone(videos, tmp_path):
    build(videos, tmp_path)
    for one in videos[:4]:
        one.files[0].unlink()
    with pytest.raises(UserError, match=r"of other videos \(4 of its 6 are missing\)"):
        build(videos, tmp_path)
    assert FrameStore(tmp_path / "store").names == [one.name for one in videos]


def test_a_change_is_continued_after_a_stop(videos, tmp_path, monkeypatch):
    """Until it is complete, the store is the one from before."""
    build(videos[:4], tmp_path)
    build(videos[:5], tmp_path)
    once = contents(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    build(videos[:4], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("ivcl_fast.data.store.build._finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(videos[:5], tmp_path)
    assert FrameStore(tmp_path / "store").names == ["v0", "v1", "v2", "v3"]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_build", lambda *_: pytest.fail("built again"))
        assert build(videos[:5], tmp_path).names == ["v0", "v1", "v2", "v3", "v4"]
    assert contents(tmp_path / "store") == once


def test_videos_that_change_during_a_build(videos, tmp_path):
    """The next build keeps the finished shards of the one that was stopped."""

    def stop(done: int, total: int) -> None:
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(videos[:5], tmp_path, progress=stop)
    write_painted(videos[4].files[0], 8, 6)
    before = inodes(tmp_path / "store")
    store = build(videos, tmp_path)
    assert shown(store)["v4"] == [(8, i) for i in range(6)] and len(store.names) == 6
    assert "shard-00000.u8" in inodes(store.path).keys() - written(store.path, before)


def test_a_store_of_an_older_version(videos, tmp_path):
    """It is read as it is, if names and sizes are the same; from then on changes are followed."""
    store = build(videos, tmp_path)
    (store.path / "sources.json").unlink()
    meta = json.loads((store.path / "meta.json").read_text())
    write_meta(store.path, {k: v for k, v in meta.items() if k not in ("state", "sha256")})
    before = inodes(store.path)
    assert shown(FrameStore(store.path)) == shown(build(videos, tmp_path))
    assert not written(store.path, before)
    write_painted(videos[0].files[0], 7, 5)
    assert shown(build(videos, tmp_path))["v0"] == [(7, i) for i in range(5)]
