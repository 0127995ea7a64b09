"""The streaming loader gives the batches of the store loader, and names broken files."""

from __future__ import annotations

import os
import tempfile
import threading
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from ivcl_fast.data import stream
from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.data.decode.decoder import probe, resolve_decoder
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.table import decoded
from ivcl_fast.data.stream import StreamLoader, info_of, saved_index
from ivcl_fast.errors import UserError
from tests.data import test_loader
from tests.data.test_loader import same
from tests.support.marks import NEEDS_DALI
from tests.support.painted import VP9, media, picture, write_images, write_painted, write_video

FRAMES = [9, 20, 5, 12, 7, 30, 3, 8, 16, 11]


def write_videos(folder: Path) -> list[Media]:
    """Media of several formats; the third is broken."""
    made = []
    for i, n in enumerate(FRAMES):
        pictures = [picture(i, frame) for frame in range(n)]
        if i % 3 == 0:
            made.append(media(write_video(folder / f"v{i}.webm", pictures, "libvpx-vp9", **VP9)))
        elif i % 3 == 1:
            made.append(write_images(folder, f"v{i}", i, n))
        else:
            made.append(media(write_painted(folder / f"v{i}.avi", i, n)))
    made[2].files[0].write_bytes(b"RIFF")
    return made


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Media]:
    return write_videos(tmp_path_factory.mktemp("videos"))


CLIPS = [Clip(f"c{i}", f"v{i}", i) for i in range(len(FRAMES))]
GOOD = [i for i in range(len(FRAMES)) if i != 2]


def make(
    videos, clips=CLIPS, batch_size=2, num_frames=4, decoder="pyav", **options
) -> StreamLoader:
    folder = tempfile.mkdtemp(dir=videos[0].files[0].parent)
    index = saved_index(videos, Path(folder), 1)
    defaults = dict(
        num_classes=36, multi_label=False, training=False, image_size=32, patch_size=8, workers=1,
    )  # fmt: skip
    how = dict(media=videos, index=index, decoder=resolve_decoder(decoder), **defaults | options)
    return StreamLoader(clips, batch_size, num_frames, **how)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("forked_workers")
def test_the_same_batches_as_from_a_store(videos, tmp_path, workers):
    store = build_store(videos, tmp_path, 32, 8, "pyav", workers=1)
    loader = make(videos, batch_size=3, workers=workers, training=True)
    expected = test_loader.make(store, CLIPS, batch_size=3, training=True)
    assert len(loader) == len(expected) == 3
    for epoch in range(3):
        assert same(list(loader.epoch(epoch)), list(expected.epoch(epoch)))
    loader.close()
    assert not active_children()


ON_A_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="too small for the GPU's decoder")


@NEEDS_DALI
@pytest.mark.parametrize(
    "decoder", [pytest.param("dali", marks=ON_A_CPU), pytest.param("auto", marks=pytest.mark.gpu)]
)
def test_dali_decodes_too(videos, decoder):
    """On a GPU, PyAV decodes the small videos in the same batches."""
    batches = list(make(videos, decoder=decoder).epoch(0))
    for found, expected in zip(batches, make(videos).epoch(0), strict=True):
        assert torch.equal(found.clip_ids, expected.clip_ids)
        assert (found.rows.int() - expected.rows.int()).abs().float().mean() < 2


MANY = [Clip(f"c{i}", f"v{GOOD[i % len(GOOD)]}", 0) for i in range(60)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("forked_workers")
def test_an_abandoned_epoch_ends_and_leaves_nothing_behind(videos, workers):
    loader = make(videos, MANY, batch_size=4, workers=workers)
    batches = loader.epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]
    assert same(list(loader.epoch(1)), list(make(videos, MANY, batch_size=4).epoch(1)))
    loader.close()
    assert not active_children()


def test_a_file_that_breaks_later_is_named(videos, tmp_path):
    listed = list(videos)
    listed[3] = media(write_painted(tmp_path / "v3.avi", 3, FRAMES[3]))
    loader = make(listed, batch_size=3)
    whole = listed[3].files[0].read_bytes()
    listed[3].files[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"v3\.avi: cannot be decoded any more: "):
        list(loader.epoch(0))


def crash(*_):
    os._exit(7)


@pytest.mark.usefixtures("forked_workers")
def test_a_decoder_that_crashes_is_one_line(videos, monkeypatch):
    monkeypatch.setattr(stream, "decode_clip", crash)
    loader = make(videos, CLIPS[5:6], batch_size=1, workers=2)
    with pytest.raises(UserError, match=r"v5\.avi: a worker process died \(exit code 7\)"):
        list(loader.epoch(0))
    loader.close()


def test_only_new_and_changed_media_are_probed(tmp_path, monkeypatch):
    pictures = [picture(3, frame) for frame in range(4)]
    listed = [
        media(write_painted(tmp_path / "a.avi", 1, 7)),
        media(write_video(tmp_path / "b.mp4", pictures, "libx264")),
        media(write_painted(tmp_path / "c.avi", 2, 3)),
        write_images(tmp_path, "p", 4, 3),
        media(tmp_path / "gone.webm"),
    ]
    probed: list[str] = []
    monkeypatch.setattr(stream, "probe", lambda one: [probed.append(one.name), probe(one)][1])
    seen: list[tuple[int, int]] = []
    made = saved_index(listed, tmp_path / "index", 1, lambda *now: seen.append(now))
    names = list(map(decoded, made.names))
    assert dict(zip(names, made.frames.tolist(), strict=True)) == dict(a=7, b=4, c=3, p=3)
    for row, one in enumerate(listed[:4]):
        assert info_of(made, row) == probe(one)
    assert made.bad_files == {"gone": "cannot be opened: No such file or directory"}
    assert seen[0] == (0, 5) and seen[-1] == (5, 5)
    probed.clear()
    saved_index(listed, tmp_path / "index", 1)
    assert not probed
    write_painted(listed[2].files[0], 2, 6)
    now = [*listed[1:], media(write_painted(tmp_path / "d.avi", 5, 2))]
    found = saved_index(now, tmp_path / "index", 1)
    assert probed == ["c", "d"] and found.frames.tolist() == [4, 6, 2, 3]
