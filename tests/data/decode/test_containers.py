"""Damage that demuxers pass over, and files that lead to other files."""

from __future__ import annotations

import os
import random

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from ivcl_fast.data.clip import find_media
from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.media import probe
from tests.support.painted import (
    VP9,
    media,
    numbers,
    picture,
    read_images,
    write_images,
    write_painted,
    write_video,
)

FRAMES = 40
PICTURES = [picture(1, i) for i in range(FRAMES)]


@pytest.fixture(
    scope="module",
    params=[("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("b.mkv", "mjpeg")],
    ids=lambda param: param[0],
)
def video(request, tmp_path_factory):
    name, codec = request.param
    options = VP9 if codec == "libvpx-vp9" else {}
    return write_video(tmp_path_factory.mktemp("video") / name, PICTURES, codec, **options)


@pytest.mark.parametrize("kind", ["zeroed tail", "hole of 512", "hole of 16", "flip"])
def test_damage_never_loses_frames_silently(video, kind, tmp_path):
    whole = video.read_bytes()
    draw = random.Random(kind)
    refused = 0
    for number in range(12):
        contents, at = bytearray(whole), draw.randrange(len(whole) - 512)
        if kind == "flip":
            contents[at] ^= 1 << draw.randrange(8)
        else:
            length = len(whole) - at if kind == "zeroed tail" else int(kind.split()[-1])
            contents[at : at + length] = bytes(length)
        target = tmp_path / f"{number}{video.suffix}"
        target.write_bytes(contents)
        try:
            assert probe(media(target)).frames == FRAMES
            assert len(make_decoder("pyav", 32).decode(media(target))) == FRAMES
        except VideoError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused >= {"zeroed tail": 8, "hole of 512": 8}.get(kind, 0)


def test_a_block_that_ffmpeg_passes_over_is_missed(video, tmp_path):
    """Its flags, the byte before its content, say that it has several frames."""
    contents, target = bytearray(video.read_bytes()), tmp_path / video.name
    with av.open(str(video)) as container:
        packet = bytes([*container.demux(video=0)][5])
    contents[contents.index(packet) - 1] |= 0b110
    target.write_bytes(contents)
    with pytest.raises(VideoError, match=rf"truncated: \d+ of {FRAMES} frames"):
        probe(media(target))


def test_a_live_recording_declares_no_sizes(tmp_path):
    path = tmp_path / "live.webm"
    with av.open(str(path), "w", options={"live": "1", "cluster_time_limit": "500"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=24, options=VP9)
        stream.height, stream.width, _ = PICTURES[0].shape
        for pixels in PICTURES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    assert b"\x18\x53\x80\x67\x01" + 7 * b"\xff" in path.read_bytes()
    assert probe(media(path)).frames == FRAMES


def test_clusters_that_were_cut_out(tmp_path):
    """The sizes fit what is left, but the duration does not."""
    path = write_video(tmp_path / "a.mkv", [picture(1, i) for i in range(300)], "mjpeg")
    whole = path.read_bytes()
    segment = whole.index(b"\x18\x53\x80\x67")
    assert whole[segment + 4] == 1, "a size of eight bytes"
    second = whole.index(b"\x1f\x43\xb6\x75", whole.index(b"\x1f\x43\xb6\x75") + 4)
    size = (1 << 56) + second - segment - 12
    path.write_bytes(whole[: segment + 4] + size.to_bytes(8, "big") + whole[segment + 12 : second])
    with pytest.raises(VideoError, match=r"truncated: its frames end at \d+\.\d of 12\.5 seconds"):
        probe(media(path))


def test_an_avi_that_counts_too_few_frames(tmp_path):
    """As the first part of an OpenDML file does."""
    path = write_painted(tmp_path / "a.avi", 1, 30)
    contents = bytearray(path.read_bytes())
    for name, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = contents.index(name) + offset
        assert contents[at : at + 4] == (30).to_bytes(4, "little")
        contents[at : at + 4] = (20).to_bytes(4, "little")
    path.write_bytes(contents)
    assert probe(media(path)).frames == 30 == len(read_images(media(path)))


def test_a_gif_is_read_to_its_end(tmp_path):
    images = [Image.fromarray(pixels) for pixels in PICTURES[:10]]
    path = tmp_path / "a.gif"
    images[0].save(path, save_all=True, append_images=images[1:], comment=b"of ten")
    whole = path.read_bytes()
    assert probe(media(path)).frames == 10
    path.write_bytes(whole + b"\n")
    assert probe(media(path)).frames == 10
    for at in [*range(1, len(whole), 11), len(whole) - 1]:
        path.write_bytes(whole[:at])
        with pytest.raises(VideoError, match=r"truncated|not a video file"):
            probe(media(path))


def test_the_cover_of_music_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", 44100), container.add_stream("mjpeg", 1)
        sound.layout = "mono"
        cover.height, cover.width, _ = PICTURES[0].shape
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence) + sound.encode(None))
        container.mux(cover.encode(av.VideoFrame.from_ndarray(PICTURES[0], "rgb24")))
        container.mux(cover.encode(None))
    with pytest.raises(VideoError, match="holds no video stream"):
        probe(media(path))


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_avi_with_empty_chunks(tmp_path, codec):
    """In which a frame stays, as writers of a variable frame rate do it."""
    times = [0, 1, 2, 5, 6, 7, 20, 21, 22, 23]
    path = write_video(tmp_path / "a.avi", PICTURES[: len(times)], codec, times=times)
    one = media(path)
    assert probe(one).frames == len(times)
    expected = [(1, number) for number in range(len(times))]
    assert numbers(make_decoder("pyav", 32).decode(one).numpy()) == expected
    contents = bytearray(path.read_bytes())
    for name in (b"avih", b"strh"):
        at = contents.index(name) + (24 if name == b"avih" else 40)
        assert contents[at : at + 4] == (24).to_bytes(4, "little")
        contents[at : at + 4] = (25).to_bytes(4, "little")
    path.write_bytes(contents)
    with pytest.raises(VideoError, match="truncated: 10 of 25 frames"):
        probe(one)


@pytest.mark.parametrize("name", ["list.avi", "list.m3u8", "list.mp4"])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_list_of_other_files_is_refused(tmp_path, name, text):
    write_video(tmp_path / "secret.mp4", PICTURES[:5], "libx264")
    (tmp_path / name).write_text(text)
    with pytest.raises(VideoError, match="not a video file"):
        probe(media(tmp_path / name))


def test_a_pipe_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.avi")
    with pytest.raises(VideoError, match="is not a regular file"):
        find_media(tmp_path / "pipe.avi")
    with pytest.raises(VideoError, match="is not a regular file"):
        probe(media(tmp_path / "pipe.avi"))


def test_a_broken_image_is_named(tmp_path):
    one = write_images(tmp_path, "ACRE_train_000000", 1, 10)
    contents = bytearray(one.files[7].read_bytes())
    contents[40:-12] = bytes(len(contents) - 52)
    one.files[7].write_bytes(contents)
    with pytest.raises(VideoError, match=r"one of its frames, ACRE_train_000000_07\.png"):
        make_decoder("pyav", 32).decode(one)
