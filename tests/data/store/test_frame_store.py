"""The frame store contains the decoder's frames, byte for byte, wherever it is placed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.store import frame_store
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.table import INDEX
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify
from tests.support.marks import DALI
from tests.support.painted import media, numbers_of_rows, write_painted

SIZES = 32, 8
FRAME_BYTES = 3 * 32**2
FRAMES = (5, 9, 3, 30, 1, 8, 12, 7)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Media]:
    """Eight videos, and four files that cannot be used."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_painted(folder / f"v{i}.avi", i, n) for i, n in enumerate(FRAMES)]
    (folder / "empty.avi").write_bytes(b"")
    (folder / "cut.avi").write_bytes(paths[3].read_bytes()[:1000])
    (folder / "noise.avi").write_bytes(spoiled(paths[1].read_bytes()))
    others = [folder / f"{name}.avi" for name in ("empty", "cut", "noise", "absent")]
    return [media(path) for path in sorted([*paths, *others])]


def spoiled(contents: bytes) -> bytes:
    """A file with intact headers and a frame that cannot be decoded."""
    at = contents.index(b"\xff\xdb")
    return contents[:at] + bytes(200) + contents[at + 200 :]


def build(videos, out, decoder="pyav", **options) -> FrameStore:
    return build_store(videos, out, *SIZES, decoder, 1, **options)


@pytest.fixture(scope="module")
def built(videos, tmp_path_factory) -> FrameStore:
    return build(videos, tmp_path_factory.mktemp("stores") / "store")


@pytest.mark.parametrize("decoder", ["pyav", DALI])
def test_equals_direct_decoding(videos, tmp_path, decoder):
    store = build(videos, tmp_path, decoder)
    store.verify()
    assert store.names == [f"v{i}" for i in range(len(FRAMES))]
    assert (store.image_size, store.patch_size, store.decoder) == (*SIZES, decoder)
    for video in (one for one in videos if one.name in store.names):
        direct = patchify(make_decoder(decoder, SIZES[0]).decode(video).cpu(), SIZES[1])
        rows = store.rows(video.name, range(store.num_frames(video.name)))
        np.testing.assert_array_equal(rows, direct)


def test_exactly_the_frames_asked_for(built):
    for number, count in enumerate(FRAMES):
        for ids in ([count - 1, 0, 0], range(0, count, 3), []):
            assert numbers_of_rows(built.rows(f"v{number}", ids)) == [(number, i) for i in ids]
    for wrong in ([9], [-1], [0, 30]):
        with pytest.raises(IndexError, match="frames 0 to 8"):
            built.rows("v1", wrong)


def test_bad_files_are_listed_with_reasons(built, videos, caplog):
    assert list(built.bad_files) == ["absent", "cut", "empty", "noise"]
    assert json.loads((built.path / "bad_files.json").read_text()) == built.bad_files
    for name, said in dict(
        absent="No such", cut="not a video", empty="empty", noise="decode"
    ).items():
        assert said in built.bad_files[name]
    with pytest.raises(UserError, match="no frames of cut: not a video"):
        built.rows("cut", [0])
    with pytest.raises(UserError, match="no frames of other: "):
        built.num_frames("other")
    build(videos, built.path)
    assert "4 of 12 videos cannot be used" in caplog.text


def test_a_damaged_shard_is_found_and_built_again(videos, tmp_path):
    build(videos, tmp_path)
    shard = max(tmp_path.glob("*.u8"), key=lambda path: path.stat().st_size)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1234] + bytes([whole[1234] ^ 1]) + whole[1235:])
    store = FrameStore(tmp_path)
    with pytest.raises(UserError, match=rf"{shard.name}: damaged: .* delete it"):
        store.verify()
    for remains in (whole[:-1], None):
        shard.unlink()
        if remains:
            shard.write_bytes(remains)
        with pytest.raises(UserError, match=rf"{shard.name}: .* bytes, got"):
            FrameStore(tmp_path)
        build(videos, tmp_path).verify()
        assert shard.read_bytes() == whole


def test_a_damaged_index_is_one_line(videos, tmp_path):
    build(videos, tmp_path)
    index = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(index[:-1])
    with pytest.raises(UserError, match=r"index\.safetensors: damaged: .* delete this file"):
        FrameStore(tmp_path)
    (tmp_path / INDEX).unlink()
    build(videos, tmp_path)
    assert (tmp_path / INDEX).read_bytes() == index


def test_a_store_of_another_version_is_refused(videos, tmp_path, monkeypatch):
    build(videos[:1], tmp_path)
    monkeypatch.setattr("ivcl_fast.data.store.table.VERSION", 99)
    for open_it in (FrameStore, lambda path: build(videos, path)):
        with pytest.raises(UserError, match=r"another version .*prepare it again"):
            open_it(tmp_path)


def test_bad_arguments(videos, built, tmp_path):
    out = tmp_path / "a"
    for sizes, what in (((64, 8), "image_size 64, got 32"), ((32, 16), "patch_size 16, got 8")):
        with pytest.raises(UserError, match=what):
            build_store(videos, built.path, *sizes, "pyav", 1)
    with pytest.raises(UserError, match="of other videos"):
        build([Media(f"other {one.name}", one.files) for one in videos], built.path)
    with pytest.raises(UserError, match="no videos"):
        build([], out)
    with pytest.raises(UserError, match="2 videos have the name v0"):
        build([media(tmp_path / "v0.avi"), media(tmp_path / "b" / "v0.avi")], out)
    with pytest.raises(UserError, match="is not a frame store"):
        FrameStore(tmp_path / "none")
    assert not out.exists()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="expected an empty folder or a store"):
        build(videos, tmp_path)
    with pytest.raises(UserError, match="expected a folder, got a file"):
        build(videos, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_more_shards_than_are_open_at_a_time(built, monkeypatch):
    monkeypatch.setattr(frame_store, "OPEN_SHARDS", 2)
    store = FrameStore(built.path)
    wanted = built.names * 2, [np.array([0])] * 16
    assert torch.equal(store.batch(*wanted), built.batch(*wanted))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
