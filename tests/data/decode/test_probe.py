"""Probing of media: what files contain, and the reasons why files are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import probe
from ivcl_fast.data.decode.media import VideoInfo
from tests.support.painted import (
    media,
    picture,
    read_images,
    write_avi,
    write_blender_avi,
    write_images,
    write_painted,
    write_video,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return write_painted(tmp_path_factory.mktemp("index") / "a.avi", 1, 9).read_bytes()


def refused(tmp_path, contents: bytes) -> str:
    path = tmp_path / "bad.avi"
    path.write_bytes(contents)
    with pytest.raises(VideoError) as caught:
        read_images(media(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("write", [write_avi, write_blender_avi])
def test_header_and_packets(tmp_path, write):
    path = write(tmp_path / "a.avi", [picture(1, frame) for frame in range(9)])
    info = probe(media(path))
    assert (info.frames, info.codec, info.width, info.height) == (9, "mjpeg", 80, 60)
    assert info.fps == pytest.approx(24, rel=1e-3)
    jpegs = read_images(media(path))
    assert len(jpegs) == 9 and all(jpeg.startswith(b"\xff\xd8") for jpeg in jpegs)
    assert read_images(media(path), np.array([8, 0, 8])) == [jpegs[8], jpegs[0], jpegs[8]]


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(VideoError, match="No such file"):
        probe(media(tmp_path / "none.avi"))
    assert "empty (0 bytes)" in refused(tmp_path, b"")
    with pytest.raises(VideoError, match="is not a regular file"):
        probe(media(tmp_path))


@pytest.mark.parametrize("size", [4, 100, -2000])
def test_truncated(tmp_path, whole, size):
    """A truncated file is refused, if it ends in its header or in a frame."""
    reason = refused(tmp_path, whole[:size])
    assert "truncated" in reason or "not a video file" in reason


def test_frame_cut_short(tmp_path, whole):
    at = [match.start() for match in re.finditer(b"\xff\xd9", whole)][3]
    assert "frame 3" in refused(tmp_path, whole[:at] + b"xx" + whole[at + 2 :])


def test_rotation(tmp_path):
    pictures = [picture(1, frame) for frame in range(6)]
    for count in (1, 6):
        path = write_video(tmp_path / "turned.mp4", pictures[:count], "libx264", rotation=90)
        assert probe(media(path)) == VideoInfo(count, 24.0, "h264", 80, 60, rotation=1)


@pytest.mark.parametrize(("suffix", "codec"), [(".png", "png"), (".jpg", "mjpeg")])
def test_image_sequences(tmp_path, suffix, codec):
    images = write_images(tmp_path, "p", 3, 5, suffix)
    assert probe(images) == VideoInfo(5, 0.0, codec, 80, 60)
    assert read_images(images, [4, 0]) == [images.files[i].read_bytes() for i in (4, 0)]
    with pytest.raises(IndexError, match="frames 0 to 4"):
        read_images(images, [5])
    cut = images.files[2]
    cut.write_bytes(cut.read_bytes()[:-20])
    assert probe(images).frames == 5
    with pytest.raises(VideoError, match=rf"p_02\{suffix} is not a complete JPEG or PNG image"):
        read_images(images)
    cut.write_bytes(b"")
    with pytest.raises(VideoError, match=rf"p_02\{suffix} is empty"):
        probe(images)
    cut.unlink()
    with pytest.raises(VideoError, match=rf"p_02\{suffix} cannot be opened: No such file"):
        probe(images)
    with pytest.raises(VideoError, match="its frames are missing"):
        probe(Media("none", ()))
