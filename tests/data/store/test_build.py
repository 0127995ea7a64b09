"""Builds of a store: several at once, changes, kills and full disks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkContext
from pathlib import Path

import numpy as np
import pytest
import torch

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import PyAVDecoder
from ivcl_fast.data.store import shards
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.shards import VideoSource, squares
from ivcl_fast.errors import UserError
from tests.data.store.test_frame_store import contents
from tests.support.painted import (
    VP9,
    media,
    numbers_of_rows,
    picture,
    write_images,
    write_painted,
    write_video,
)
from tests.support.strangers import check_strange, strange_files
from tests.training.test_checkpoint import no_file_beyond

SIZES = 32, 8
FRAME_BYTES = 3 * 32**2


@pytest.fixture(autouse=True)
def few_shards(monkeypatch):
    """Shards of four videos on average."""
    monkeypatch.setattr(shards, "SHARDS", 6)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Media]:
    folder = tmp_path_factory.mktemp("videos")
    return [media(write_painted(folder / f"v{i:02d}.avi", i, 8 + i % 5)) for i in range(24)]


@pytest.fixture
def own(tmp_path) -> list[Media]:
    """Videos to change."""
    return [media(write_painted(tmp_path / f"v{i}.avi", i, 5)) for i in range(6)]


def build(videos, out, workers=1, **options) -> FrameStore:
    return build_store(videos, out, *SIZES, "pyav", workers, **options)


@pytest.fixture(scope="module")
def built(videos, tmp_path_factory) -> FrameStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARDS", 6)
        return build(videos, tmp_path_factory.mktemp("stores") / "store")


def shown(store: FrameStore) -> dict[str, list[tuple[int, int]]]:
    store.verify()
    return {n: numbers_of_rows(store.rows(n, range(store.num_frames(n)))) for n in store.names}


def expected(**numbers: tuple[int, int]) -> dict[str, list[tuple[int, int]]]:
    """Frames by name of the video, each given by its number and number of frames."""
    return {name: [(video, i) for i in range(n)] for name, (video, n) in numbers.items()}


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.u8")}


def test_every_kind_of_media_in_one_store(tmp_path, monkeypatch):
    """Three frames at a time, so that long videos need no more memory than short ones."""
    monkeypatch.setattr(PyAVDecoder, "part_bytes", 4 * FRAME_BYTES - 1)
    pictures = [picture(3, i) for i in range(12)]
    broken = bytearray(write_painted(tmp_path / "broken.avi", 6, 8).read_bytes())
    at = broken.rindex(b"\xff\xdb")  # in the last frame, when others are written already
    broken[at : at + 200] = bytes(200)
    (tmp_path / "broken.avi").write_bytes(broken)
    everything = [
        media(tmp_path / "broken.avi"),
        write_images(tmp_path, "jpg", 5, 3, ".jpg"),
        media(write_painted(tmp_path / "motion.avi", 1, 9)),
        media(write_video(tmp_path / "phone.mp4", pictures, "libx264")),
        write_images(tmp_path, "png", 4, 10),
        media(write_video(tmp_path / "web.webm", pictures, "libvpx-vp9", **VP9)),
    ]
    store = build(everything, tmp_path / "store")
    assert shown(store) == expected(
        jpg=(5, 3), motion=(1, 9), phone=(3, 12), png=(4, 10), web=(3, 12)
    )
    assert list(store.bad_files) == ["broken"] and "frame 7" in store.bad_files["broken"]


# --- sources other than videos ------------------------------------------------------------------


class Painted:
    """Clips that are drawn straight into the store."""

    decoder, crop = "drawn", "none"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def only(self, names: Sequence[str]) -> Painted:
        return Painted(names)

    def state(self, name: str) -> str:
        return "1"

    def fps(self, name: str) -> float:
        return 24.0

    def frames(self, name: str, image_size: int) -> Iterator[torch.Tensor]:
        for first in (0, 3):
            drawn = np.stack([picture(int(name), first + i) for i in range(3)])
            yield squares(drawn, image_size)


def test_a_source_without_files(tmp_path):
    painted = Painted([f"{i}" for i in range(5)])
    store = build_store(painted, tmp_path / "store", *SIZES, workers=1)
    assert store.decoder == "drawn" and store.index.fps.tolist() == [24.0] * 5
    assert shown(store) == {f"{i}": [(i, frame) for frame in range(6)] for i in range(5)}
    video = media(write_video(tmp_path / "v.avi", [picture(3, i) for i in range(6)], "ffv1"))
    for decoded in VideoSource([video], "pyav").frames("v", 32):
        drawn = torch.cat([*painted.frames("3", 32)])
        assert (decoded.int() - drawn.int()).abs().float().mean() < 2


def test_the_next_call_completes_a_build_that_was_killed(built, videos, tmp_path):
    def die(done: int, total: int) -> None:
        if done >= 8:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = ForkContext().Process(
        target=build, args=(videos, tmp_path, 1), kwargs={"progress": die}
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    with pytest.raises(UserError, match="not finished"):
        FrameStore(tmp_path)
    build(videos, tmp_path)
    assert contents(tmp_path) == contents(built.path)


def test_two_builds_make_one_store_together(videos, built, tmp_path):
    """Threads stand for processes: a lock is of an open file."""
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(build, videos, tmp_path) for _ in range(2)]
    assert all(one.result().path == tmp_path for one in both)
    assert contents(tmp_path) == contents(built.path)


def test_files_of_others_in_a_store_are_kept(own, tmp_path):
    build(own, tmp_path / "store")
    strangers = strange_files(tmp_path / "store")
    build(own[:5], tmp_path / "store")
    check_strange(strangers)


def test_added_changed_removed_and_repaired(own, tmp_path):
    """Other shards stay, and a store that is open as in a training that goes on."""
    whole = own[5].files[0].read_bytes()
    own[5].files[0].write_bytes(whole[:-100])
    store = build(own[:4] + own[5:], tmp_path / "store")
    assert shown(store) == expected(v0=(0, 5), v1=(1, 5), v2=(2, 5), v3=(3, 5))
    assert list(store.bad_files) == ["v5"]
    opened, before = FrameStore(store.path), inodes(store.path)

    own[5].files[0].write_bytes(whole)
    store = build(own, tmp_path / "store")
    assert list(shown(store)) == [f"v{i}" for i in range(6)] and not store.bad_files
    assert len(before.items() & inodes(store.path).items()) == 4

    write_painted(own[1].files[0], 9, 3)
    found = shown(build([*own[:3], *own[4:]], tmp_path / "store"))
    assert found == expected(v0=(0, 5), v1=(9, 3), v2=(2, 5), v4=(4, 5), v5=(5, 5))
    assert numbers_of_rows(opened.rows("v3", [4])) == [(3, 4)]


def test_videos_that_are_gone(own, tmp_path):
    build(own, tmp_path / "store")
    for one in own[:4]:
        one.files[0].unlink()
    with pytest.raises(UserError, match=r"of other videos \(4 of its 6 are missing\)"):
        build(own, tmp_path / "store")
    assert FrameStore(tmp_path / "store").names == [one.name for one in own]


def test_a_build_continues_after_a_full_disk(own, tmp_path):
    """A limit on the size of files stands for a full disk."""
    big = [*own, media(write_painted(tmp_path / "v9.avi", 50, 90))]
    with no_file_beyond(40 * FRAME_BYTES), pytest.raises(OSError, match="File too large: "):
        build(big, tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.tmp"))
    assert build(big, tmp_path / "store").num_frames("v9") == 90


def test_a_complete_store_is_opened_without_writing(own, tmp_path, monkeypatch):
    """As on a read-only file system."""
    build(own[:2], tmp_path / "store")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened to write"))
    assert build(own[:2], tmp_path / "store").names == ["v0", "v1"]
