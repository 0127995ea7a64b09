"""``load_clip`` gives the frames that training and evaluation read from a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ivcl_fast
from ivcl_fast import IVCLClassifier, IVCLConfig, load_clip
from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.store.build import build_store
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import unpatchify
from tests.data.test_loader import make
from tests.support.painted import (
    VP9,
    media,
    numbers,
    picture,
    write_images,
    write_painted,
    write_video,
)

SIZES = dict(image_size=32, depth=1, temporal_depth=1)
CFG = IVCLConfig.preset("tiny", **SIZES, num_frames=4, num_query_frames=2)
ONE_FRAME = IVCLConfig.preset("tiny", **SIZES, num_frames=1, num_query_frames=1)


def stored(given: Media, folder: Path, cfg: IVCLConfig) -> torch.Tensor:
    """The clip as evaluation reads it, through a store and its loader."""
    store = build_store([given], folder / "store", cfg.image_size, cfg.patch_size, "pyav", 1)
    assert store.bad_files == {}
    loader = make(store, [Clip("clip", given.name, 0)], 1, cfg.num_frames)
    (batch,) = loader.epoch(0)
    return unpatchify(batch.rows, cfg.patch_size)


@pytest.mark.parametrize("cfg", [CFG, ONE_FRAME])
@pytest.mark.parametrize("kind", ["mjpeg", "vp9", "h264", "short", "folder", "list"])
def test_the_frames_are_those_of_the_store(tmp_path, cfg, kind):
    count = 2 if kind == "short" else 11
    if kind in ("folder", "list"):
        folder = tmp_path / "frames"
        folder.mkdir()
        given = write_images(folder, "panel", 5, count)
        path = folder if kind == "folder" else [str(file) for file in given.files]
        (folder / "answer.txt").touch()
    elif kind in ("vp9", "h264"):
        pictures = [picture(5, frame) for frame in range(count)]
        codec, options = ("libvpx-vp9", VP9) if kind == "vp9" else ("libx264", {"bf": "2"})
        given = media(path := write_video(tmp_path / "v.mkv", pictures, codec, **options))
    else:
        given = media(path := write_painted(tmp_path / "v.avi", 5, count))
    clip = load_clip(path, cfg)
    assert clip.dtype == torch.uint8 and clip.shape == (1, cfg.num_frames, 3, 32, 32)
    assert numbers(clip[0].numpy()) == [(5, i) for i in frame_ids(count, cfg.num_frames)]
    assert torch.equal(clip, stored(given, tmp_path, cfg))
    assert IVCLClassifier(cfg, 7)(clip).shape == (1, 7)


def test_images_of_a_folder_are_in_the_order_of_their_numbers(tmp_path):
    for number, path in enumerate(write_images(tmp_path, "f", 1, 12).files):
        path.rename(tmp_path / f"f{number}.png")
    assert numbers(load_clip(str(tmp_path), CFG)[0].numpy()) == [(1, i) for i in (0, 4, 7, 11)]


def test_clips_of_seconds(tmp_path):
    for rate, expected in ((8, [3, 4, 5, 6]), (24, [0, 3, 6, 9])):
        pictures = [picture(1, frame) for frame in range(11)]
        path = write_video(tmp_path / f"{rate}.mp4", pictures, "libx264", rate=rate)
        clip = load_clip(path, CFG, clip_seconds=0.5)
        assert numbers(clip[0].numpy()) == [(1, i) for i in expected]
    images = [str(file) for file in write_images(tmp_path, "f", 1, 3).files]
    with pytest.raises(UserError, match=r"clip_seconds: expected a video with a frame rate"):
        load_clip(images, CFG, clip_seconds=0.5)
    with pytest.raises(UserError, match=r"clip_seconds: expected 0 with frame_stride, got 0\.5"):
        load_clip(path, CFG, frame_stride=1, clip_seconds=0.5)
    with pytest.raises(UserError, match=r"clip_seconds: expected 0 to .*, got nan"):
        load_clip(path, CFG, clip_seconds=float("nan"))


def test_errors_are_one_line_with_the_name_of_the_file(tmp_path):
    def fails_with(path, message):
        with pytest.raises(UserError) as error:
            load_clip(path, CFG)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)

    video = write_painted(tmp_path / "v.avi", 1, 9)
    cut, text = tmp_path / "cut.avi", tmp_path / "text.avi"
    cut.write_bytes(video.read_bytes()[:-999])
    text.write_text("no video")
    images = write_images(tmp_path, "f", 1, 3).files
    images[1].write_bytes(images[1].read_bytes()[:-9])
    fails_with(tmp_path / "absent.avi", f"{tmp_path / 'absent.avi'}: expected a video file")
    fails_with(cut, f"{cut}: truncated")
    fails_with(text, f"{text}: not a video file")
    fails_with(images, "3 images: f_01.png is not a complete JPEG or PNG image")
    fails_with([images[0], images[2].with_name("none.png")], "2 images: none.png cannot be opened")
    fails_with([images[0], video], f"{video}: expected an image: ")
    fails_with([], "0 images: its frames are missing")
    (tmp_path / "empty").mkdir()
    fails_with(tmp_path / "empty", f"{tmp_path / 'empty'}: expected a video file, or a folder of")
    with pytest.raises(UserError, match=r"frame_stride: expected 0 to .*, got -1"):
        load_clip(video, CFG, frame_stride=-1)
    with pytest.raises(UserError, match="decoder: expected one of auto, dali, pyav, got 'nvdec'"):
        load_clip(video, CFG, decoder="nvdec")
    assert ivcl_fast.load_clip is load_clip
