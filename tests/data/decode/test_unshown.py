"""Packets that show no frame of their own by design are not damage; those that lack one are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import pytest

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.indexed import index_one
from ivcl_fast.data.decode.media import probe
from tests.support.field_pictures import write_fields
from tests.support.painted import media, numbers, picture, write_video

FRAMES = 20


def frames_of(path: Path) -> list[int]:
    """Return the numbers of the frames; asserts that probing, a store and streaming agree."""
    one = media(path)
    decoder = make_decoder("pyav", 32)
    found = [number for _, number in numbers(decoder.decode(one).numpy())]
    assert [probe(one).frames, index_one(one).info.frames] == [len(found)] * 2
    assert sum(map(len, decoder.parts(one))) == len(found)
    return found


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def write_packets(path: Path, like: Path, packets: Sequence[bytes]) -> Path:
    """Write packets as those of another file."""
    with av.open(str(like)) as source, av.open(str(path), "w") as target:
        template = source.streams.video[0]
        stream = target.add_stream_from_template(template)
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.pts = packet.dts = round(number / 24 / template.time_base)
            packet.duration = round(1 / 24 / template.time_base)
            packet.time_base, packet.is_keyframe = template.time_base, number == 0
            packet.stream = stream
            target.mux(packet)
    return path


# --- fields of H.264 ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mts", ".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("rest", [(0, 1, 2), (0, 1), ()])
def test_fields_in_packets_of_their_own(tmp_path, suffix, rest):
    """All frames, two of three, and none are coded as fields; all could be."""
    path = write_fields(tmp_path / f"a{suffix}", FRAMES, lambda number: number % 3 in rest)
    in_fields = sum(number % 3 in rest for number in range(FRAMES))
    assert len(packets_of(path)) == FRAMES + in_fields
    assert frames_of(path) == [*range(FRAMES)]


@pytest.mark.parametrize("suffix", [".mts", ".mkv"])
@pytest.mark.parametrize("left_out", [20, 21])
def test_a_field_that_is_missing(tmp_path, suffix, left_out):
    """The first or the second of a frame."""
    path = write_fields(tmp_path / f"a{suffix}", FRAMES, left_out=left_out)
    with pytest.raises(VideoError):
        make_decoder("pyav", 32).decode(media(path))


@pytest.mark.parametrize("suffix", [".mts", ".mkv", ".mp4"])
def test_fields_of_a_file_that_is_cut(tmp_path, suffix):
    path = write_fields(tmp_path / f"a{suffix}", FRAMES)
    whole = path.read_bytes()
    for share in (0.3, 0.51, 0.8, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(VideoError):
            make_decoder("pyav", 32).decode(media(path))


# --- hidden frames of VP8 -----------------------------------------------------------------------


@pytest.fixture
def vp8(tmp_path) -> Path:
    pictures = [picture(1, number) for number in range(FRAMES)]
    return write_video(tmp_path / "a.webm", pictures, "libvpx", g="60", **{"lag-in-frames": "0"})


def hidden(packet: bytes) -> bytes:
    return bytes([packet[0] & ~0x10]) + packet[1:]


def test_frames_that_are_not_shown(vp8, tmp_path):
    packets = packets_of(vp8)
    for number in (7, 14, FRAMES - 1):
        packets[number] = hidden(packets[number])
    path = write_packets(tmp_path / "b.webm", vp8, packets)
    assert frames_of(path) == [n for n in range(FRAMES) if n not in (7, 14, FRAMES - 1)]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match="truncated"):
        probe(media(path))


def test_damage_is_no_frame_that_is_not_shown(vp8, tmp_path):
    packets = packets_of(vp8)
    packets[9] = bytes(len(packets[9]))
    with pytest.raises(VideoError):
        make_decoder("pyav", 32).decode(media(write_packets(tmp_path / "b.webm", vp8, packets)))


# --- VOPs of MPEG-4 that are not coded ----------------------------------------------------------


@pytest.fixture
def mpeg4(tmp_path) -> Path:
    pictures = [picture(1, number) for number in range(FRAMES)]
    return write_video(tmp_path / "a.avi", pictures, "mpeg4", g="60", bf="0")


def not_coded(number: int, size: int = 0) -> bytes:
    """Return a VOP in which the frame stays, at a time of 24 in a second."""
    bits = f"01{'' if number % 24 else '1'}01{number % 24:05b}10"
    bits += "0" + "1" * (7 - len(bits) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big") + bytes(size)


@pytest.mark.parametrize("those", [(7,), (7, 8, 14), (FRAMES, FRAMES + 1)])
def test_vops_that_are_not_coded(mpeg4, tmp_path, those):
    """At the end of a video, FFmpeg makes its last frame once more."""
    packets = packets_of(mpeg4)
    for place in those:
        packets.insert(place, not_coded(place))
    path = write_packets(tmp_path / "b.avi", mpeg4, packets)
    assert frames_of(path) == [*range(FRAMES)]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match="truncated"):
        probe(media(path))


def test_a_vop_that_would_not_be_coded_but_has_content(mpeg4, tmp_path):
    packets = packets_of(mpeg4)
    packets[9] = not_coded(9, 100)
    with pytest.raises(VideoError):
        make_decoder("pyav", 32).decode(media(write_packets(tmp_path / "b.avi", mpeg4, packets)))


def test_two_vops_in_a_packet(tmp_path):
    """As DivX packs them: a VOP that is not coded follows, in place of the second one."""
    pictures = [picture(1, number) for number in range(FRAMES + 1)]
    options = {"bf": "1", "b_strategy": "0", "g": "60"}
    source = write_video(tmp_path / "a.avi", pictures, "mpeg4", **options)
    first, *others = packets_of(source)
    at = first.index(b"\0\0\1\xb6")
    packed = [first[:at] + b"\0\0\1\xb2DivX503b1393p" + first[at:]]
    for reference, between in zip(others[::2], others[1::2], strict=True):
        packed += [reference + between, not_coded(1)]
    assert len(packed) == FRAMES + 1
    assert frames_of(write_packets(tmp_path / "b.avi", source, packed)) == [*range(FRAMES + 1)]
