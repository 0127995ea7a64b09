"""Builds of a store with several processes, crashes, hangs, full disks and kills."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode import decoder
from ivcl_fast.data.decode.decoder import Decoder, make_decoder
from ivcl_fast.data.decode.media import probe
from ivcl_fast.data.store import build as building
from ivcl_fast.data.store import index, shards
from ivcl_fast.data.store.build import Part, StoreBuild, build_store
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.shards import ShardTask, build_shard, finished_shard
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked
from ivcl_fast.models.reference import patchify
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

SIZES = 32, 8
FRAME_BYTES = 3 * 32**2
SHARD_BYTES = 40 * FRAME_BYTES


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Media]:
    folder = tmp_path_factory.mktemp("videos")
    return [media(write_painted(folder / f"v{i:02d}.avi", i, 8 + i % 5)) for i in range(24)]


def build(videos, out, workers=1, **options) -> FrameStore:
    return build_store(videos, out, *SIZES, "pyav", workers, shard_bytes=SHARD_BYTES, **options)


@pytest.fixture(scope="module")
def built(videos, tmp_path_factory) -> FrameStore:
    return build(videos, tmp_path_factory.mktemp("stores") / "store")


def broken_at_its_end(path: Path) -> Media:
    """A video whose last frame cannot be decoded, when others may be written already."""
    contents = bytearray(write_painted(path, 6, 8).read_bytes())
    at = contents.rindex(b"\xff\xdb")
    contents[at : at + 200] = bytes(200)
    path.write_bytes(contents)
    return media(path)


def test_every_kind_of_media_in_one_store(tmp_path, monkeypatch):
    """Three frames at a time, so that long videos need no more memory than short ones."""
    monkeypatch.setattr(Decoder, "part_bytes", 4 * FRAME_BYTES - 1)
    sizes: list[int] = []
    monkeypatch.setattr(
        shards, "patchify", lambda part, size: [sizes.append(len(part)), patchify(part, size)][1]
    )
    pictures = [picture(3, i) for i in range(12)]
    everything = [
        broken_at_its_end(tmp_path / "broken.avi"),
        media(write_painted(tmp_path / "motion.avi", 1, 9)),
        media(write_video(tmp_path / "web.webm", pictures, "libvpx-vp9", **VP9)),
        media(write_video(tmp_path / "phone.mp4", pictures, "libx264")),
        write_images(tmp_path, "png", 4, 10),
        write_images(tmp_path, "jpg", 5, 3, ".jpg"),
    ]
    store = build(everything, tmp_path / "store")
    found = {n: numbers_of_rows(store.rows(n, range(store.num_frames(n)))) for n in store.names}
    assert found == {
        "motion": [(1, i) for i in range(9)],
        "web": [(3, i) for i in range(12)],
        "phone": [(3, i) for i in range(12)],
        "png": [(4, i) for i in range(10)],
        "jpg": [(5, i) for i in range(3)],
    }
    assert store.bad_files == {"broken": "FFmpeg cannot decode one of its frames, frame 7"}
    assert set(sizes) == {1, 3}
    store.verify()


def test_a_shard_whose_last_video_is_broken_is_finished(videos, tmp_path, monkeypatch):
    """It would be built again for ever if it held a part of that video."""
    monkeypatch.setattr(Decoder, "part_bytes", FRAME_BYTES)
    group = videos[0], broken_at_its_end(tmp_path / "broken.avi")
    task = ShardTask(tmp_path / "shard-00000.u8", group, (8, 8), ("pyav", "pyav"), *SIZES)
    build_shard(task, lambda _: None)
    shard = finished_shard(task.path)
    assert shard is not None and shard.frames == {"v00": 8} and list(shard.bad_files) == ["broken"]


# --- several processes --------------------------------------------------------------------------

BUILD = """
import os, signal, sys
from pathlib import Path
from ivcl_fast.data.store.build import Part, StoreBuild, build_store
from ivcl_fast.data.dataset import Media

def die_when_half_is_done(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    paths = [Path(line) for line in Path(sys.argv[1]).read_text().split()]
    videos = [Media(path.stem, (path,)) for path in paths]
    out, workers, options = Path(sys.argv[2]), int(sys.argv[3]), dict(shard_bytes=40 * 3 * 32**2)
    if len(sys.argv) == 4:
        build_store(videos, out, 32, 8, "pyav", workers, **options)
    else:
        part, dies = Part(int(sys.argv[4]), 3), sys.argv[5] == "dies"
        build = StoreBuild(videos, out, 32, 8, "pyav", **options)
        print(build.run(part, workers, die_when_half_is_done if dies else None))
"""


def start_build(
    videos, folder: Path, workers: int, *more: str, **environment: str
) -> subprocess.Popen:
    script, listed = folder / "build.py", folder / "videos.txt"
    if not script.exists():  # a process that was started before may be reading it
        script.write_text(BUILD)
        listed.write_text("\n".join(str(one.files[0]) for one in videos))
    return subprocess.Popen(
        [sys.executable, script, listed, folder / "store", str(workers), *more],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ranks_build_one_store_together(videos, built, tmp_path):
    ranks = [
        start_build(videos, tmp_path, 1, RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        for rank in range(2)
    ]
    for process in ranks:
        _, error = process.communicate()
        assert process.returncode == 0, error
    assert contents(tmp_path / "store") == contents(built.path)


def test_three_parts_one_of_them_killed(videos, built, tmp_path):
    """The part that is started again completes the store; the others do not wait for it."""
    parts = [
        start_build(videos, tmp_path, 1, str(number), "dies" if number == 1 else "lives")
        for number in range(3)
    ]
    ended = [(process.communicate()[0], process.returncode) for process in parts]
    assert ended[1] == ("", -signal.SIGKILL)
    assert [int(ended[at][0]) > 0 and ended[at][1] == 0 for at in (0, 2)] == [True, True]
    assert not (tmp_path / "store" / "meta.json").exists()
    again = start_build(videos, tmp_path, 1, "1", "lives")
    assert again.communicate() == ("0\n", "")
    build(videos, tmp_path / "store")  # deletes what the build has left
    assert contents(tmp_path / "store") == contents(built.path)


def test_shards_of_another_process_are_waited_for(videos, built, tmp_path, monkeypatch):
    """They are built here if that process dies."""
    waits = []
    other = ExitStack()
    other.enter_context(locked(tmp_path / "shard-00003.lock"))

    def end_of_the_other(seconds: float) -> None:
        waits.append({path.name for path in tmp_path.glob("*.u8")})
        other.close()

    monkeypatch.setattr(building.time, "sleep", end_of_the_other)
    build(videos, tmp_path)
    everything = {path.name for path in built.path.glob("*.u8")}
    assert waits == [everything - {"shard-00003.u8"}]
    assert contents(tmp_path) == contents(built.path)


def test_without_locks_the_shards_that_others_write_stay(videos, built, tmp_path, monkeypatch):
    """On such a file system every process builds every shard; a temporary file is its own."""

    def no_locks(*_):
        raise OSError

    monkeypatch.setattr(fcntl, "flock", no_locks)
    written = tmp_path / "shard-00000.u8.7-2c.ivcl.tmp"
    written.write_text("half")
    build(videos, tmp_path)
    assert written.read_text() == "half"
    monkeypatch.undo()
    assert contents(build(videos, tmp_path).path) == contents(built.path)  # with locks, it goes


def test_the_other_process_may_finish_the_store(videos, built, tmp_path, monkeypatch):
    """If it does so after this one has made its plan, nothing is built twice."""
    build_shards = building._build_shards

    def after_the_other(*arguments) -> None:
        monkeypatch.setattr(building, "_build_shards", build_shards)
        build(videos, tmp_path)
        monkeypatch.setattr(shards, "_build", lambda *_: pytest.fail("built twice"))
        build_shards(*arguments)

    monkeypatch.setattr(building, "_build_shards", after_the_other)
    build(videos, tmp_path)
    assert contents(tmp_path) == contents(built.path)


def test_a_shard_of_a_finished_store_is_left_alone(videos, built, tmp_path, monkeypatch):
    """A slow process may come to it after its record was deleted."""
    build(videos, tmp_path)
    before = contents(tmp_path)
    task = ShardTask(tmp_path / "shard-00000.u8", tuple(videos[:1]), (8,), ("pyav",), *SIZES)
    monkeypatch.setattr(shards, "_build", lambda *_: pytest.fail("built again"))
    build_shard(task, lambda _: None)
    assert contents(tmp_path) == before


def test_files_of_others_in_a_store_are_kept(videos, built, tmp_path):
    kill_at(0.02, videos, tmp_path)
    strangers = strange_files(tmp_path / "store")
    build(videos, tmp_path / "store")
    check_strange(strangers)
    build(videos, tmp_path / "store")
    check_strange(strangers)
    found = contents(tmp_path / "store")
    assert {name: found[name] for name in contents(built.path)} == contents(built.path)


def kill_at(moment: float, videos, folder: Path) -> None:
    """Kill a parallel build and its workers, ``moment`` seconds after its plan exists."""
    process = start_build(videos, folder, 2)
    while not (folder / "store" / "plan.json").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.001)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- crashes, hangs and full disks --------------------------------------------------------------


class BadDecoder:
    """Hangs and crashes as native decoders do on broken files."""

    def parts(self, one: Media, square: str):
        if one.name == "v05":
            time.sleep(1000)
        if one.name == "v11":
            os.kill(os.getpid(), signal.SIGSEGV)
        return make_decoder("pyav", SIZES[0]).parts(one)


def build_with_bad_decoder(task, report):
    shards.make_decoder = lambda *_: BadDecoder()  # type: ignore[assignment]
    return build_shard(task, report)


def test_decoders_that_hang_or_crash_lose_only_their_files(videos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(building, "build_shard", build_with_bad_decoder)
    seen: list[tuple[int, int]] = []
    store = build(videos, tmp_path, 2, stall_seconds=2, progress=lambda *now: seen.append(now))
    assert store.bad_files == {
        "v05": "decoding it failed twice: no progress for 2 seconds; touch the file to try again",
        "v11": "decoding it failed twice: its process died (SIGSEGV); touch the file to try again",
    }
    good = [one for one in videos if one.name not in store.bad_files]
    assert store.names == [one.name for one in good]
    for one in good:
        rows = store.rows(one.name, range(store.num_frames(one.name)))
        assert torch.equal(
            torch.from_numpy(rows), patchify(make_decoder("pyav", 32).decode(one), 8)
        )
    assert caplog.text.count("v05.avi: decoding it failed") == 2
    assert seen[-1][0] == seen[-1][1]
    store.verify()


def test_decoders_of_long_videos_have_more_time(videos, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(decoder, "MIN_RATE", 0.1)
    monkeypatch.setattr(
        building, "_build_shards", lambda tasks, pool, _: waits.append(pool.stall_seconds)
    )
    StoreBuild(videos, tmp_path, *SIZES, "pyav").run(Part(0, 1), 2, stall_seconds=60)
    assert waits == [12 / 0.1]


def test_a_file_that_hangs_when_it_is_opened(videos, tmp_path):
    """A named pipe would never open; the index lists it as bad."""
    os.mkfifo(tmp_path / "pipe.avi")
    listed = [*videos[:3], media(tmp_path / "pipe.avi")]
    store = build(listed, tmp_path / "store", 2, stall_seconds=2)
    assert store.names == ["v00", "v01", "v02"]
    assert store.bad_files == {"pipe": "is not a regular file"}


def test_a_worker_lost_after_its_last_file_raises(videos):
    task = index.ProbeTask(tuple(videos[:2]), probe)
    with pytest.raises(RuntimeError, match="was lost: out of memory"):
        index.SecondChance()(index.Lost(task, (1, 1), "out of memory"))


def test_a_build_continues_after_a_full_disk(videos, built, tmp_path):
    """A limit on the size of files stands for a full disk."""
    everything = sum(built.num_frames(name) for name in built.names) * FRAME_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = [*videos, media(write_painted(tmp_path / "v99.avi", 50, 90))]
    resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD_BYTES, hard))
    try:
        with pytest.raises(UserError) as caught:
            build(big, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "File too large; the store needs 0.00 GB more and" in message
    assert "the same command continues" in message and "\n" not in message
    finished = [path for path in (tmp_path / "store").glob("*.u8") if finished_shard(path)]
    assert sum(path.stat().st_size for path in finished) == everything
    assert not list((tmp_path / "store").glob("*.tmp"))
    store = build(big, tmp_path / "store")
    assert store.num_frames("v99") == 90


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_cannot_be_written(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="store: cannot be written: Permission denied"):
        build(videos, tmp_path / "store")


def test_a_store_that_is_read_only_serves_the_same_names_and_sizes(tmp_path, monkeypatch):
    """Although the times differ, as those of copies; other videos are not left out silently."""
    copies = [media(write_painted(tmp_path / f"v{i}.avi", i, 5)) for i in range(3)]
    build(copies[:2], tmp_path / "store")
    os.utime(copies[0].files[0], (0, 0))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert build(copies[:2], tmp_path / "store").names == ["v0", "v1"]
    with pytest.raises(UserError, match="store: cannot be written: Permission denied"):
        build(copies, tmp_path / "store")
