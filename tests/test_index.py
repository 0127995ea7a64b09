"""What a video file holds, and which files are refused with which reason."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ivcl_fast.data.index import VideoError, probe, read_jpegs

from .painted import picture, write_avi, write_blender_avi, write_painted


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return write_painted(tmp_path_factory.mktemp("index") / "a.avi", 1, 9).read_bytes()


def refused(tmp_path, contents: bytes) -> str:
    path = tmp_path / "bad.avi"
    path.write_bytes(contents)
    with pytest.raises(VideoError) as caught:
        read_jpegs(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("write", [write_avi, write_blender_avi])
def test_header_and_packets(tmp_path, write):
    path = write(tmp_path / "a.avi", [picture(1, frame) for frame in range(9)])
    info = probe(path)
    assert (info.frames, info.codec, info.width, info.height) == (9, "mjpeg", 80, 60)
    assert info.fps == pytest.approx(24, rel=1e-3)
    jpegs = read_jpegs(path)
    assert len(jpegs) == 9
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in jpegs)
    assert read_jpegs(path, np.array([8, 0, 8])) == [jpegs[8], jpegs[0], jpegs[8]]


@pytest.mark.parametrize("wrong", [[9], [-1], [0, 100]])
def test_frames_that_do_not_exist(tmp_path, wrong):
    path = write_painted(tmp_path / "a.avi", 1, 9)
    with pytest.raises(IndexError, match="frames 0 to 8"):
        read_jpegs(path, wrong)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(VideoError, match="No such file"):
        probe(tmp_path / "none.avi")
    assert "empty (0 bytes)" in refused(tmp_path, b"")
    with pytest.raises(VideoError, match="cannot be opened"):
        probe(tmp_path)


@pytest.mark.parametrize("keep", [4, 100, 0.3, 0.7, -2000, -40, -1])
def test_truncated(tmp_path, whole, keep):
    """Wherever the file was cut, it is refused: in its header, in a frame, in its index."""
    size = int(len(whole) * keep) if isinstance(keep, float) else keep
    reason = refused(tmp_path, whole[:size])
    assert "truncated" in reason or "not a video file" in reason


def test_writer_did_not_finish(tmp_path, whole):
    assert "did not finish" in refused(tmp_path, whole[:4] + bytes(4) + whole[8:])


def test_fewer_packets_than_declared(tmp_path, whole):
    at = whole.index(b"strh") + 8 + 32  # the stream's length in frames
    declared = (12).to_bytes(4, "little")
    assert "truncated: 9 of 12 frames" in refused(tmp_path, whole[:at] + declared + whole[at + 4 :])


def test_frame_cut_short(tmp_path, whole):
    at = [match.start() for match in re.finditer(b"\xff\xd9", whole)][3]
    assert "frame 3" in refused(tmp_path, whole[:at] + b"xx" + whole[at + 2 :])


def test_not_a_video_and_another_codec(tmp_path):
    assert "not a video file" in refused(tmp_path, b"hello, this is no video" * 100)
    path = write_avi(tmp_path / "b.avi", [picture(0, i) for i in range(4)], codec="mpeg4")
    with pytest.raises(VideoError, match="mpeg4 is not Motion-JPEG"):
        probe(path)
