"""Decoding the frames of a clip gives what decoding everything gives, from fewer packets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivcl_fast.data.decode.decoder import make_decoder, open_media
from ivcl_fast.data.decode.video import OpenVideo
from tests.support.painted import VP9, media, picture, write_video

FRAMES = 60
PICTURES = [picture(1, i) for i in range(FRAMES)]
X265 = {"x265-params": "log-level=none:keyint=12:min-keyint=12"}
KINDS = [
    ("a.mp4", "libx264", {"g": "12"}),
    ("a.mkv", "libx264", {"g": "12", "x264-params": "open-gop=1:scenecut=0:bframes=3"}),
    ("a.mp4", "libx264", {"g": "12", "x264-params": "intra-refresh=1"}), ("a.mov", "libx265", X265),
    ("a.webm", "libvpx-vp9", {**VP9, "g": "12"}),
    ("a.mp4", "libx264", {"g": "12", "times": [n + (n > 30) * 7 for n in range(FRAMES)]}),
    ("a.mp4", "mpeg4", {"g": "12", "bf": "2"}), ("a.avi", "libx264", {"g": "12"}),
    ("a.webm", "libvpx", {"g": "12"}),
]  # fmt: skip
CLIPS = ([0], [FRAMES - 1], [59, 3, 3, 30], [11, 12, 13], [7, 23, 24, 47, 48], range(20, 31))


@pytest.mark.parametrize(("name", "codec", "options"), KINDS)
def test_the_frames_of_a_clip(tmp_path, name, codec, options):
    one = media(write_video(tmp_path / name, PICTURES, codec, **options))
    decoder = make_decoder("pyav", 32)
    everything = decoder.decode(one)
    assert len(everything) == FRAMES
    opened = open_media(one)
    for ids in CLIPS:
        assert torch.equal(decoder.decode_open(opened, ids), everything[np.array(ids)])
    with pytest.raises(IndexError):
        decoder.decode_open(opened, [FRAMES])


@pytest.mark.parametrize(("name", "codec", "options"), [KINDS[0], KINDS[4]])
def test_only_what_a_clip_needs_is_decoded(tmp_path, monkeypatch, name, codec, options):
    path = write_video(tmp_path / name, PICTURES, codec, **options)
    fed: list[bool] = []

    class Counting:
        def __init__(self, stream):
            self.stream = stream

        def decode(self, packet):
            fed.append(packet is not None)
            return self.stream.decode(packet)

        def __getattr__(self, name):
            return getattr(self.stream, name)

    def read_and_count():
        stream, packets = read()
        return Counting(stream), packets

    opened = open_media(media(path))
    assert isinstance(opened, OpenVideo) and opened.info.frames == FRAMES
    read = opened._read
    monkeypatch.setattr(opened, "_read", read_and_count)
    assert [number for number, _ in opened.frames([1, 50])] == [1, 50]
    assert 2 <= sum(fed) < 20
