"""Streaming when files break, decoders crash or hang, and disks fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ivcl_fast.data import stream
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.stream import StreamLoader, decode_in_worker
from ivcl_fast.data.workers import time_limit
from ivcl_fast.errors import UserError
from tests.data.test_loader import same
from tests.data.test_stream import CLIPS, FRAMES, make, write_videos
from tests.support.painted import (
    media,
    write_painted,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Media]:
    return write_videos(tmp_path_factory.mktemp("videos"))


def broken_later(videos, tmp_path) -> tuple[list[Media], StreamLoader]:
    """A loader whose fourth video breaks after it was indexed."""
    listed = list(videos)
    listed[3] = media(write_painted(tmp_path / "v3.avi", 3, FRAMES[3]))
    loader = make(listed, shuffle=False, batch_size=3)
    whole = listed[3].files[0].read_bytes()
    listed[3].files[0].write_bytes(whole[: len(whole) // 2])
    return listed, loader


def test_a_file_that_breaks_later_is_dropped_by_name(videos, tmp_path, caplog, monkeypatch):
    listed, loader = broken_later(videos, tmp_path)
    first = [batch.clip_ids.tolist() for batch in loader.epoch(0)]
    assert first == [[0, 1], [4, 5, 6], [7, 8, 9]]  # nobody stands in for number 3
    assert list(loader.dropped) == ["v3"] and "truncated" in loader.dropped["v3"]
    assert f"{listed[3].files[0]}: dropped" in caplog.text
    assert [batch.clip_ids.tolist() for batch in loader.epoch(0)] == first
    assert caplog.text.count("v3.avi: dropped") == 1  # it is not opened again
    assert len(loader) == 3


def test_a_disk_that_fails_ends_the_epoch_and_drops_no_video(videos, monkeypatch):
    loader = make(videos, CLIPS[5:6], batch_size=1)

    def broken_disk(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", broken_disk)
    with pytest.raises(UserError, match=r"v5\.avi: cannot be read: Input/output error"):
        list(loader.epoch(0))
    assert not loader.dropped


def test_a_batch_without_usable_videos_raises(videos, tmp_path):
    _, loader = broken_later(videos, tmp_path)
    loader.batch_size = 1
    with pytest.raises(UserError, match="none of the videos"):
        list(loader.epoch(0))


def decode_or_die(request):
    if request.media.name == "v5":
        os._exit(7)
    if request.media.name == "v7":
        with time_limit(1):
            time.sleep(1000)
    return decode_in_worker(request)


@pytest.mark.usefixtures("forked_workers")
def test_decoders_that_crash_or_hang_lose_only_their_clips(videos, monkeypatch, caplog):
    monkeypatch.setattr(stream, "decode_in_worker", decode_or_die)
    monkeypatch.setattr(stream, "TRIES", 2)
    loader = make(videos, workers=2, batch_size=3, shuffle=False)
    found = [batch.clip_ids.tolist() for batch in loader.epoch(0)]
    assert found == [[0, 1, 3], [4, 6], [8, 9]]
    assert loader.dropped == {
        "v5": "decoding failed 2 times: its process died (exit code 7)",
        "v7": "decoding failed 2 times: the decoder hung",
    }
    assert [batch.clip_ids.tolist() for batch in loader.epoch(0)] == found
    assert caplog.text.count("v7_00.png: decoding failed:") == 2
    loader.close()


def decode_or_die_once(request):
    """The first worker that decodes v4 is killed."""
    marker = request.media.files[0].with_suffix(".killed")
    if request.media.name == "v4" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_in_worker(request)


@pytest.mark.usefixtures("forked_workers")
def test_the_same_batches_though_a_worker_dies(videos, monkeypatch):
    expected = list(make(videos).epoch(1))
    monkeypatch.setattr(stream, "decode_in_worker", decode_or_die_once)
    loader = make(videos, workers=2)
    assert same(list(loader.epoch(1)), expected) and not loader.dropped
    loader.close()
