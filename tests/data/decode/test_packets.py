"""Videos are decoded from their beginning, a packet at a time, and as a whole or not at all."""

from __future__ import annotations

import gc
import itertools

import av
import pytest

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode import media as video
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.media import OpenVideo, open_media, probe
from tests.support.marks import NEEDS_DALI
from tests.support.painted import (
    VP9,
    media,
    numbers,
    picture,
    scenes,
    write_video,
)


class FailsOnce:
    """A container whose first reading fails after two packets; the next goes on from there."""

    def __init__(self, container) -> None:
        self.format, self._container, self._left = container.format, container, 2

    def close(self) -> None:
        self._container.close()

    def demux(self, stream):
        for packet in self._container.demux(stream):
            yield packet
            self._left -= 1
            if self._left == 0:
                raise av.error.InvalidDataError(0, "a part that cannot be read")


@NEEDS_DALI
def test_pyav_reads_a_video_anew_in_place_of_dali(tmp_path):
    """A WebM file may not tell how many frames it has, so what is left would pass as a video."""
    pictures = [picture(0, frame) for frame in range(6)]
    one = media(write_video(tmp_path / "a.webm", pictures, "libvpx-vp9", g="1", **VP9))
    for ids in (None, [1]):
        with open_media(one) as opened:
            opened._declared, opened.container = 0, FailsOnce(opened.container)
            found = numbers(make_decoder("dali", 32).decode_open(opened, ids).numpy())
            assert found == [(0, i) for i in ids or range(6)]


@NEEDS_DALI
def test_pyav_decodes_parts_in_place_of_dali(tmp_path, monkeypatch):
    pictures = [picture(0, frame) for frame in range(6)]
    one = media(write_video(tmp_path / "a.webm", pictures, "libvpx-vp9", **VP9))
    decoder = make_decoder("dali", 32)

    def fail(kind, **inputs):
        raise VideoError("DALI cannot decode it")

    monkeypatch.setattr(decoder, "_run", fail)
    monkeypatch.setattr(type(decoder), "part_bytes", 4 * 3 * 32**2)
    parts = [numbers(part.numpy()) for part in decoder.parts(one)]
    assert parts == [[(0, i) for i in range(4)], [(0, i) for i in range(4, 6)]]


@pytest.mark.parametrize(
    ("name", "codec", "options"), [("a.webm", "libvpx-vp9", VP9), ("a.avi", "mjpeg", {})]
)
def test_a_video_is_not_in_memory_as_a_whole(tmp_path, monkeypatch, name, codec, options):
    """Neither while it is probed nor while all of its frames are decoded."""
    pictures = [picture(0, frame) for frame in range(60)]
    one = media(write_video(tmp_path / name, pictures, codec, **options))
    demux, counts = OpenVideo._demux, list[int]()

    def in_memory() -> int:  # takes a while: beside other tests there are many things
        return sum(isinstance(thing, av.Packet | av.VideoFrame) for thing in gc.get_objects())

    def counted(opened: OpenVideo):
        for number, packet in enumerate(demux(opened)):
            yield packet
            if number in (30, 59):
                counts.append(in_memory() - before)

    gc.collect()
    before = in_memory()
    monkeypatch.setattr(OpenVideo, "_demux", counted)
    monkeypatch.setattr(video, "KEPT_BYTES", 30)
    assert probe(one).frames == 60
    assert sum(map(len, make_decoder("pyav", 32).parts(one))) == 60
    assert len(counts) >= 4 and max(counts) < 10


@pytest.mark.parametrize("stops", [1, None])
@pytest.mark.parametrize("most", [0, video.KEPT_BYTES])
def test_what_is_left_of_a_video_is_not_taken_for_it(tmp_path, monkeypatch, stops, most):
    """It is read from its beginning again: after some frames, and after all."""
    monkeypatch.setattr(video, "KEPT_BYTES", most)
    pictures = [picture(0, frame) for frame in range(6)]
    one = media(write_video(tmp_path / "a.webm", pictures, "libvpx-vp9", g="1", **VP9))
    with open_media(one) as opened:
        assert isinstance(opened, OpenVideo)
        opened._declared = 0
        assert len([*itertools.islice(opened.frames(), stops)]) == (stops or 6)
        assert len([*opened.frames()]) == 6 == opened.info.frames
        assert len([*opened.frames()]) == 6


def test_a_video_with_damaged_packets(tmp_path):
    """Its headers are intact, its packets are not."""
    path = write_video(tmp_path / "a.mp4", scenes(12), "libx264", bf="0")
    contents = bytearray(path.read_bytes())
    middle = len(contents) // 2
    contents[middle : middle + 300] = bytes(300)
    path.write_bytes(contents)
    with pytest.raises(VideoError):
        make_decoder("pyav", 32).decode(media(path))


def test_a_packet_that_makes_no_frame(tmp_path):
    class Silent:
        is_discard, size = False, 1

        def decode(self):
            return []

    class Container:
        def __init__(self, container) -> None:
            self.format, self._container = container.format, container

        def close(self) -> None:
            self._container.close()

        def demux(self, stream):
            yield from self._container.demux(stream)
            yield Silent()

    path = write_video(tmp_path / "a.webm", scenes(3), "libvpx-vp9", **VP9)
    with open_media(media(path)) as opened:
        assert isinstance(opened, OpenVideo)
        opened.container = Container(opened.container)  # type: ignore[assignment]
        with pytest.raises(VideoError, match="4 frames by its packets, 3 decoded"):
            make_decoder("pyav", 32).decode_open(opened)
