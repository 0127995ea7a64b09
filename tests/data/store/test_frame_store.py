"""The frame store contains the decoder's frames, byte for byte, after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ivcl_fast import files
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.store import frame_store
from ivcl_fast.data.store.build import build_store, default_store_path
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify
from tests.support.painted import media, numbers_of_rows, picture, write_avi, write_painted

SIZES = 32, 8
FRAME_BYTES = 3 * 32**2
SHARD_BYTES = 20 * FRAME_BYTES  # two or three of the videos below
FRAMES = (5, 9, 3, 30, 1, 8, 12, 7)  # one video is longer than a shard

DECODERS = [
    "pyav",
    pytest.param(
        "dali",
        marks=pytest.mark.skipif(not decode._dali_installed(), reason="DALI is not installed"),
    ),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Media]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_painted(folder / f"v{i}.avi", i, n) for i, n in enumerate(FRAMES)]
    (folder / "empty.avi").write_bytes(b"")
    (folder / "cut.avi").write_bytes(paths[3].read_bytes()[: paths[3].stat().st_size // 2])
    (folder / "noise.avi").write_bytes(spoiled(paths[1].read_bytes()))
    others = [folder / f"{name}.avi" for name in ("empty", "cut", "noise", "absent")]
    ordered = [*paths[:2], others[0], *paths[2:5], *others[1:], *paths[5:]]
    return [media(path) for path in ordered]


def spoiled(contents: bytes) -> bytes:
    """A file with intact headers and a frame that cannot be decoded."""
    at = contents.index(b"\xff\xdb")
    return contents[:at] + bytes(200) + contents[at + 200 :]


def build(videos, out, decoder="pyav", workers=1, **options) -> FrameStore:
    return build_store(videos, out, *SIZES, decoder, workers, shard_bytes=SHARD_BYTES, **options)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def built(videos, tmp_path_factory) -> FrameStore:
    return build(videos, tmp_path_factory.mktemp("stores") / "store")


PLACES = [
    ("disk", "cpu"), ("ram", "cpu"), ("gpu", "cpu"),
    pytest.param("gpu", "cuda", marks=pytest.mark.gpu),
]  # fmt: skip


@pytest.mark.parametrize("placement, device", PLACES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_equals_direct_decoding(videos, tmp_path, decoder, placement, device):
    build(videos, tmp_path, decoder)
    store = FrameStore(tmp_path, placement, device=torch.device(device))
    store.verify()
    assert store.names == [f"v{i}" for i in range(len(FRAMES))]
    assert (store.image_size, store.patch_size, store.decoder) == (*SIZES, decoder)
    for video in (v for v in videos if v.name in store.names):
        direct = patchify(make_decoder(decoder, SIZES[0]).decode(video).cpu(), SIZES[1])
        count = store.num_frames(video.name)
        np.testing.assert_array_equal(store.rows(video.name, range(count)), direct)


@pytest.mark.gpu
def test_batches_in_gpu_memory(built):
    """They equal those from disk, and are gathered without waiting for the GPU."""
    placed = FrameStore(built.path, "gpu", device=torch.device("cuda"))
    wanted = ["v3", "v0", "v6"], [np.array(ids) for ids in ([29, 0, 7], [4, 4, 1], [0, 5, 11])]
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = placed.batch(*wanted, pin=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rows.is_cuda and torch.equal(rows.cpu(), built.batch(*wanted))


def test_exactly_the_frames_asked_for(built):
    for number, count in enumerate(FRAMES):
        for ids in (list(range(count)), [count - 1], [0], list(range(0, count, 3)), [0, 0], []):
            rows = built.rows(f"v{number}", ids)
            assert rows.shape == (len(ids), built.num_patches, built.patch_dim)
            assert numbers_of_rows(rows) == [(number, i) for i in ids]
    out = np.zeros((2, built.num_patches, built.patch_dim), np.uint8)
    assert built.rows("v1", [8, 2], out) is out
    assert numbers_of_rows(out) == [(1, 8), (1, 2)]
    for wrong in ([9], [-1], [0, 30]):
        with pytest.raises(IndexError, match="frames 0 to 8"):
            built.rows("v1", wrong)


def test_bad_files_are_listed_with_reasons(built, videos, tmp_path, caplog):
    assert list(built.bad_files) == ["absent", "cut", "empty", "noise"]
    assert json.loads((built.path / "bad_files.json").read_text()) == built.bad_files
    assert "No such file" in built.bad_files["absent"]
    assert "truncated" in built.bad_files["cut"]
    assert "empty" in built.bad_files["empty"]
    assert "cannot decode" in built.bad_files["noise"]
    assert "cut" not in built.names
    with pytest.raises(UserError, match="no frames of cut: truncated"):
        built.rows("cut", [0])
    with pytest.raises(UserError, match="no frames of other: "):
        built.num_frames("other")
    build(videos, built.path)
    assert "4 of 12 videos cannot be used" in caplog.text


def test_only_bad_files(videos, tmp_path):
    store = build([v for v in videos if v.name in ("empty", "noise")], tmp_path)
    assert store.names == []
    assert len(store.bad_files) == 2


def test_shards_are_bounded_and_whole(built):
    sizes = [path.stat().st_size for path in sorted(built.path.glob("*.u8"))]
    assert sum(sizes) == sum(FRAMES) * FRAME_BYTES
    assert len(sizes) > 3
    assert all(size <= SHARD_BYTES or size == 30 * FRAME_BYTES for size in sizes)
    names = {path.name for path in built.path.iterdir()}
    shards = {f"shard-{i:05d}.u8" for i in range(len(sizes))}
    assert names == {"meta.json", "index.json", "bad_files.json", "sources.json"} | shards


def test_same_bytes_whatever_the_number_of_workers(built, videos, tmp_path):
    seen = []
    build(videos, tmp_path, workers=2, progress=lambda *seen_now: seen.append(seen_now))
    assert contents(tmp_path) == contents(built.path)
    total = sum(FRAMES) + FRAMES[1]  # the headers' frames: the noisy file's too
    assert [now for now, _ in seen] == sorted(now for now, _ in seen)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)


def test_a_second_call_opens(built, videos, monkeypatch):
    before = {p.name: p.stat().st_mtime_ns for p in built.path.iterdir()}
    build(videos, built.path)
    assert {p.name: p.stat().st_mtime_ns for p in built.path.iterdir()} == before


class Killed(BaseException):
    """Stands for a kill, which no handler catches."""


def test_stopped_before_any_of_its_writes(built, videos, tmp_path, monkeypatch):
    """Before each of the files is renamed; the next call gives the same bytes."""
    replace, stops = os.replace, 0
    while True:
        left = stops

        def replace_or_stop(source, target):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            replace(source, target)

        out = tmp_path / str(stops)
        monkeypatch.setattr(files.os, "replace", replace_or_stop)
        try:
            build(videos, out)
        except Killed:
            monkeypatch.setattr(files.os, "replace", replace)
            (out / "shard-00001.u8.123.ivcl.tmp").write_bytes(b"left behind by a kill")
            with pytest.raises(UserError, match="not finished"):
                FrameStore(out)
            build(videos, out)
        else:
            break
        assert contents(out) == contents(built.path), f"after stop {stops}"
        stops += 1
    assert stops == 2 * len(list(built.path.glob("*.u8"))) + 5


def test_the_choice_of_the_decoder_is_logged(videos, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(decode, "_dali_installed", lambda: False)
    assert build(videos[:1], tmp_path, "auto").decoder == "pyav"
    assert "decoder: pyav for 1 mjpeg files, because DALI is not installed" in caplog.text


KILL_ITSELF = """
import multiprocessing, os, signal, sys
from pathlib import Path
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.dataset import Media

def progress(done, total):
    if done >= int(sys.argv[3]):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

paths = [Path(line) for line in Path(sys.argv[1]).read_text().split()]
videos = [Media(path.stem, (path,)) for path in paths]
build_store(videos, Path(sys.argv[2]), 32, 8, "pyav", 2, progress, shard_bytes=20 * 3 * 32**2)
"""


def test_kill_9_leaves_no_orphans_and_the_next_call_completes(built, videos, tmp_path):
    script, listed, out = tmp_path / "build.py", tmp_path / "videos.txt", tmp_path / "store"
    script.write_text(KILL_ITSELF)
    listed.write_text("\n".join(str(v.files[0]) for v in videos))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, script, listed, out, "20"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = [int(pid) for pid in killed.stdout.split()]
    assert workers
    assert not (out / "meta.json").exists()
    wait_until_gone(workers)
    build(videos, out)
    assert contents(out) == contents(built.path)


def wait_until_gone(pids: list[int]) -> None:
    """Wait for processes to end; zombies have ended."""
    for _ in range(600):
        states = []
        for pid in pids:
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists():
                states.append(stat.read_text().rpartition(")")[2].split()[0])
        if all(state == "Z" for state in states):
            return
        time.sleep(0.1)
    raise AssertionError(f"workers outlived their parent: {pids}")


@pytest.mark.parametrize("placement", ["disk", "ram"])
def test_a_flipped_byte_is_found(videos, tmp_path, placement):
    build(videos, tmp_path)
    shard = tmp_path / "shard-00001.u8"
    changed = bytearray(shard.read_bytes())
    changed[1234] ^= 1
    shard.write_bytes(changed)
    store = FrameStore(tmp_path, placement)
    with pytest.raises(UserError, match=r"shard-00001\.u8: its contents changed"):
        store.verify()
    shard.write_bytes(changed[:-1])
    with pytest.raises(UserError, match=r"shard-00001\.u8: .* bytes, not .* as built"):
        FrameStore(tmp_path, placement)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.u8: 0 bytes"):
        FrameStore(tmp_path, placement)


def test_a_changed_index_is_found_on_opening(videos, tmp_path):
    build(videos, tmp_path)
    index = tmp_path / "index.json"
    index.write_text(index.read_text().replace("30", "29"))
    with pytest.raises(UserError, match=r"index\.json: its contents changed"):
        FrameStore(tmp_path)


def test_even_a_blank_line_in_the_meta_file_is_found(videos, tmp_path):
    build(videos, tmp_path)
    meta = tmp_path / "meta.json"
    meta.write_text(meta.read_text() + "\n")
    with pytest.raises(UserError, match=r"meta\.json: its contents changed"):
        FrameStore(tmp_path)


def test_other_settings_or_videos_are_refused(built, videos):
    for out, sizes, what in (
        (built.path, (64, 8), "image_size 32, not 64"),
        (built.path, (32, 16), "patch_size 8, not 16"),
    ):
        with pytest.raises(UserError, match=what):
            build_store(videos, out, *sizes, "pyav", 1)
    others = [Media(f"other {one.name}", one.files) for one in videos]
    with pytest.raises(UserError, match="of other videos"):
        build(others, built.path)


def test_an_unfinished_build_with_other_settings_is_refused(videos, tmp_path):
    def stop(done: int, total: int) -> None:
        if done > 20:
            raise Killed

    with pytest.raises(Killed):
        build(videos, tmp_path, progress=stop)
    with pytest.raises(UserError, match="patch_size 8, not 16"):
        build_store(videos, tmp_path, 32, 16, "pyav", 1, shard_bytes=SHARD_BYTES)
    with pytest.raises(UserError, match="shard_bytes"):
        build_store(videos, tmp_path, *SIZES, "pyav", 1)


def test_nothing_is_written_into_a_folder_of_something_else(videos, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="neither empty nor a store"):
        build(videos, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(UserError, match="a file, not a folder"):
        build(videos, tmp_path / "thesis.tex")


def test_bad_arguments(videos, built, tmp_path):
    with pytest.raises(UserError, match="64 is not a multiple of patch_size 7"):
        build_store(videos, tmp_path / "a", 64, 7)
    with pytest.raises(UserError, match="workers: 0"):
        build(videos, tmp_path / "a", workers=0)
    with pytest.raises(UserError, match="no videos"):
        build([], tmp_path / "a")
    with pytest.raises(UserError, match="two videos have the name v0"):
        build([videos[0], media(tmp_path / "v0.avi")], tmp_path / "a")
    with pytest.raises(UserError, match="placement: 'tape' is not one of auto, disk, ram, gpu"):
        FrameStore(built.path, "tape")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"placement: gpu .*accepted.*: auto, disk, ram"):
        FrameStore(built.path, "gpu")
    with pytest.raises(UserError, match="is not a frame store"):
        FrameStore(tmp_path / "none")
    assert not (tmp_path / "a").exists()


def test_a_store_of_another_version_is_refused(videos, tmp_path):
    build(videos, tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        FrameStore(tmp_path)
    with pytest.raises(UserError, match="version 99"):
        build(videos, tmp_path)


def test_default_path(tmp_path):
    assert default_store_path(tmp_path, 64, 8, "pyav") == tmp_path / "store-64-p8-pyav"


def test_more_shards_than_descriptors(tmp_path):
    """A store of 2,000 shards opens, and is read, with 100 descriptors."""
    one = build([media(write_painted(tmp_path / "v.avi", 3, 2))], tmp_path / "one")
    shard = (one.path / "shard-00000.u8").read_bytes()
    many = tmp_path / "many"
    many.mkdir()
    index = {}
    for number in range(2000):
        (many / f"shard-{number:05d}.u8").write_bytes(shard)
        index[f"v{number:04d}"] = [number, 0, 2]
    (many / "index.json").write_text(json.dumps(index))
    (many / "bad_files.json").write_text("{}")
    meta = json.loads((one.path / "meta.json").read_text())
    meta["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": frame_store.file_digest(path)}
        for path in sorted(many.iterdir())
    }
    frame_store.write_meta(many, {k: v for k, v in meta.items() if k != "sha256"})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(100, soft), hard))
    try:
        store = FrameStore(many)
        rows = store.batch(store.names[::-1], [np.array([1, 0])] * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (rows.numpy() == one.rows("v", [1, 0])).all()


def test_large_frames_are_announced(tmp_path):
    pictures = [picture(1, i) for i in range(5)]
    video = media(write_avi(tmp_path / "v.avi", pictures))
    store = build_store([video], tmp_path / "s", 160, 16, workers=1)
    in_memory = FrameStore(store.path, "ram")
    ids = np.array([4, 0, 3])
    assert (store.rows("v", ids) == in_memory.rows("v", ids)).all()
    with pytest.raises(ValueError, match="read-only"):
        store._shards[0][0, 0, 0] = 1
