"""MP4 files of which frames are hidden: by trimming, which is followed, or by damage."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import av
import pytest

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.indexed import index_one, open_indexed
from ivcl_fast.data.decode.media import probe
from tests.support.painted import media, numbers, picture, write_video

FRAMES = 24
STEP = 1 if "IVCL_FAST_FUZZ" in os.environ else 7
"""Every so many-th byte is changed."""
VARIABLE = [*(0, 1, 5, 6, 20, 50, 51, 52), *range(60, 65), *range(80, 85), *range(90, 94), 95, 99]
"""Times of the frames, in 24ths of a second."""


def written(path: Path, codec: str, **options) -> Path:
    return write_video(path, [picture(1, i) for i in range(FRAMES)], codec, **options)


def trimmed(path: Path, seconds: float) -> Path:
    """Let a copy begin later: the packets from before stay, and an edit list hides them."""
    out = path.with_stem("trimmed")
    with av.open(str(path)) as given, av.open(str(out), "w") as taken:
        stream = given.streams.video[0]
        target = taken.add_stream_from_template(stream)
        shift = round(seconds / stream.time_base)
        for packet in given.demux(stream):
            if packet.size:
                packet.stream, packet.pts, packet.dts = (
                    target,
                    packet.pts - shift,
                    packet.dts - shift,
                )
                taken.mux(packet)
    return out


@pytest.mark.parametrize(
    ("codec", "options", "left"),
    [
        ("libx264", {}, 20), ("libx264", {"times": VARIABLE}, 22), ("libx264", {"bf": "0"}, 20),
        ("mpeg4", {}, 20), ("libx265", {"x265-params": "log-level=none", "times": VARIABLE}, 22),
    ],
)  # fmt: skip
def test_a_trimmed_video_has_the_frames_that_are_shown(tmp_path, codec, options, left):
    whole = written(tmp_path / "a.mp4", codec, **options)
    assert probe(media(whole)).frames == FRAMES
    assert probe(media(trimmed(whole, 3.4 / 24))).frames == left


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"g": "8", "bf": "0"}), ("libx264", {"g": "8"}), ("mjpeg", {})],
)
@pytest.mark.parametrize("first", [4, 13, 21])
def test_frames_before_the_last_key_frame_that_is_hidden_are_not_read(
    tmp_path, codec, options, first
):
    whole = written(tmp_path / "a.mov", codec, **options)
    one = media(trimmed(whole, (first - 0.6) / 24))
    index = index_one(one)
    assert index.info.frames == FRAMES - first
    left = [(1, number) for number in range(first, FRAMES)]
    assert numbers(make_decoder("pyav", 32).decode(one).numpy()) == left
    with open_indexed(one, index, "pyav") as opened:
        assert numbers(make_decoder("pyav", 32).decode_open(opened).numpy()) == left


def test_a_trimmed_video_that_lacks_frames_is_refused(tmp_path):
    whole = trimmed(written(tmp_path / "a.mov", "mjpeg"), 12.4 / 24).read_bytes()
    at = whole.index(b"stsc")
    assert int.from_bytes(whole[at + 16 : at + 20], "big") == FRAMES, "frames of the only chunk"
    path = tmp_path / "b.mov"
    path.write_bytes(whole[: at + 16] + (FRAMES - 2).to_bytes(4, "big") + whole[at + 20 :])
    with pytest.raises(VideoError, match=f"truncated: 10 of {FRAMES} frames"):
        probe(media(path))


def test_an_edit_list_may_hide_the_end(tmp_path):
    whole = written(tmp_path / "a.mp4", "libx264").read_bytes()
    shorter = whole
    for kind, at in ((b"elst", 12), (b"tkhd", 24), (b"mvhd", 20)):
        at += shorter.index(kind)
        length = int.from_bytes(shorter[at : at + 4], "big")
        assert length == 1000
        shorter = shorter[:at] + (500).to_bytes(4, "big") + shorter[at + 4 :]
    path = tmp_path / "b.mp4"
    path.write_bytes(shorter)
    assert probe(media(path)).frames == FRAMES // 2


@pytest.mark.parametrize("options", [{}, {"times": VARIABLE}], ids=["constant", "variable"])
def test_no_changed_byte_of_a_table_hides_frames(tmp_path, options):
    """A file is refused, or all of its frames are read."""
    whole = written(tmp_path / "a.mp4", "libx264", **options).read_bytes()
    draw, outcomes = random.Random(0), Counter[str]()
    path = tmp_path / "b.mp4"
    for kind in (b"elst", b"stts", b"ctts", b"stsz", b"stsc", b"mdhd", b"tkhd"):
        start = whole.index(kind)
        length = int.from_bytes(whole[start - 4 : start], "big")
        for at in range(start, start + length - 4, STEP):
            contents = bytearray(whole)
            contents[at] ^= draw.randrange(1, 256)
            path.write_bytes(contents)
            try:
                frames = probe(media(path)).frames
            except VideoError as error:
                outcomes["refused"] += 1
                assert "\n" not in str(error)
            else:
                outcomes["read"] += 1
                assert frames >= FRAMES, (kind, at - start, whole[at], contents[at])
    assert outcomes["refused"] > 10 and outcomes["read"] > 10, outcomes
