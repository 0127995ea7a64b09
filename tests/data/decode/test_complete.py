"""Which video files are refused: the decoder reports an error, or promised frames are missing."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.decoder import make_decoder, probe
from ivcl_fast.data.decode.media import VideoInfo
from tests.support.painted import (
    VP9,
    media,
    numbers,
    picture,
    write_images,
    write_painted,
    write_video,
)

FRAMES = 40
PICTURES = [picture(1, i) for i in range(FRAMES)]
X265 = {"x265-params": "log-level=none"}
KINDS = [
    ("a.avi", "mjpeg", {}), ("a.avi", "mpeg4", {}), ("a.mp4", "libx264", {}),
    ("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mov", "libx265", X265),
    ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov", "g": "8"}),
    ("a.webm", "libvpx-vp9", VP9), ("a.webm", "libvpx", {}), ("a.mkv", "libx264", {}),
    ("a.mkv", "libvpx-vp9", {"deadline": "good", "auto-alt-ref": "1"}),
    ("a.mkv", "mjpeg", {}), ("a.flv", "libx264", {}),
]  # fmt: skip


def found(path: Path) -> list[int]:
    """Return the numbers of all frames; asserts that probing counts as many."""
    one, decoder = media(path), make_decoder("pyav", 32)
    frames = numbers(decoder.decode(one).numpy())
    assert probe(one).frames == len(frames)
    assert sum(map(len, decoder.parts(one))) == len(frames)
    return [number for _, number in frames]


def decode(path: Path) -> VideoInfo:
    info = probe(media(path))
    assert len(make_decoder("pyav", 32).decode(media(path))) == info.frames
    return info


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def write_packets(
    path: Path, like: Path, packets: Sequence[bytes | None], times: Sequence[int] | None = None
) -> Path:
    """Write packets with the header of another file, one per frame; None leaves a frame out."""
    with av.open(str(like)) as source, av.open(str(path), "w") as target:
        template = source.streams.video[0]
        stream = target.add_stream_from_template(template)
        for number, content in enumerate(packets):
            if content is not None:
                packet = av.Packet(content)
                time = number if times is None else times[number]
                packet.pts = packet.dts = round(time / 24 / template.time_base)
                packet.duration = round(1 / 24 / template.time_base)
                packet.time_base, packet.is_keyframe = template.time_base, number == 0
                packet.stream = stream
                target.mux(packet)
    return path


# --- missing frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec", "options"), KINDS)
@pytest.mark.parametrize("frames", [1, 2, FRAMES])
def test_a_whole_file_has_all_frames_and_no_warning(tmp_path, name, codec, options, frames):
    path = write_video(tmp_path / name, PICTURES[:frames], codec, **options)
    assert found(path) == [*range(frames)]
    info = probe(media(path))
    assert (info.width, info.height, info.warning) == (80, 60, "")


@pytest.mark.parametrize(("name", "codec", "options"), KINDS)
def test_a_file_without_its_end_is_refused(tmp_path, name, codec, options):
    """Cut, or filled with zeros, as a download leaves it."""
    path = write_video(tmp_path / name, PICTURES, codec, **options)
    whole = path.read_bytes()
    at = len(whole) * 6 // 10
    for rest in (b"", bytes(len(whole) - at)):
        path.write_bytes(whole[:at] + rest)
        with pytest.raises(VideoError):
            decode(path)


def with_header_count(path: Path, before: int, count: int) -> Path:
    """Let the header of an AVI file count other frames."""
    contents = bytearray(path.read_bytes())
    for at in (contents.index(b"avih") + 24, contents.index(b"strh") + 40):
        assert contents[at : at + 4] == before.to_bytes(4, "little")
        contents[at : at + 4] = count.to_bytes(4, "little")
    path.write_bytes(contents)
    return path


def test_an_avi_header_that_counts_other_frames(tmp_path):
    """The first part of an OpenDML file counts too few; too many are missing ones."""
    path = with_header_count(write_painted(tmp_path / "a.avi", 1, 30), 30, 20)
    assert found(path) == [*range(30)]
    assert probe(media(path)).warning == "its header declares 20 of 30 frames"
    with_header_count(path, 20, 31)
    with pytest.raises(VideoError, match="truncated: 30 of 31 frames"):
        probe(media(path))


def test_an_empty_chunk_after_every_frame_of_an_avi(tmp_path):
    """As FFmpeg writes H.264 of 25 frames a second with 50 ticks; one is at the end."""
    path = write_video(tmp_path / "a.avi", PICTURES[:10], "mpeg4", times=range(0, 20, 2))
    assert found(with_header_count(path, 19, 20)) == [number // 2 for number in range(19)]
    with_header_count(path, 20, 21)
    with pytest.raises(VideoError, match="truncated: 10 of 21 frames"):
        probe(media(path))


def test_packets_that_cannot_be_decoded(tmp_path):
    path = write_video(tmp_path / "a.mp4", PICTURES, "libx264", bf="0")
    packets: list[bytes | None] = [*packets_of(path)]
    packets[9] = bytes(len(packets[9] or b""))
    with pytest.raises(VideoError):
        decode(write_packets(tmp_path / "b.mp4", path, packets))


@pytest.mark.parametrize(
    ("times", "duration", "warning"),
    [
        ([24 + n for n in range(9)], 33, "its frames begin after 1.0 seconds"),
        ([*range(9)], 3, "its frames end 0.2 seconds after its duration"),
        ([0, 1, 2, 3, 5, 6, 8, 9, 11], 11, "frames are missing 3 times, up to 0.1 seconds"),
        ([0, 1, 2], 0, ""),
        ([0, 1, 2, 2, 3], 4, "1 of 5 frames have the time of another"),
    ],
)
def test_times_that_damage_may_have_changed(tmp_path, times, duration, warning):
    """WebM does not declare a number of frames."""
    path = write_video(tmp_path / "a.webm", PICTURES[: len(times)], "libvpx-vp9", **VP9, g="1")
    written = write_packets(tmp_path / "b.webm", path, packets_of(path), times)
    contents = bytearray(written.read_bytes())
    at = contents.index(b"\x44\x89\x88") + 3
    contents[at : at + 8] = struct.pack(">d", duration * 1000 / 24)
    written.write_bytes(contents)
    assert found(written) == [*range(len(times))]
    assert probe(media(written)).warning == warning


# --- odd files that are kept --------------------------------------------------------------------


def test_bytes_after_the_last_box_of_an_mp4(tmp_path):
    path = write_video(tmp_path / "a.mp4", PICTURES, "libx264")
    for rest in (b"\0" * 100, b"\0\0\1\0junk", b"more than this file has" * 50):
        with path.open("ab") as file:
            file.write(rest)
        assert found(path) == [*range(FRAMES)]


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_empty_chunk_of_an_avi_repeats_a_frame(tmp_path, codec):
    """So that later frames keep their index, as in the file's own count."""
    times = [0, 1, 2, 5, 6, 7, 20, 21, 22, 23]
    path = write_video(tmp_path / "a.avi", PICTURES[:10], codec, times=times)
    expected = [sum(time <= now for time in times) - 1 for now in range(24)]
    assert found(path) == expected
    assert probe(media(path)).warning.startswith("14 of 24 frames repeat the one before")


def not_coded(number: int) -> bytes:
    """Return a frame of MPEG-4 that is "not coded", at a time of 24 in a second."""
    bits = f"01{'' if number % 24 else '1'}01{number % 24:05b}10"
    bits += "0" + "1" * (7 - len(bits) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize(("kind", "place"), [("one byte", 7), ("not coded", 20)])
def test_a_chunk_of_an_avi_that_repeats_a_frame(tmp_path, kind, place):
    """Encoders drop frames by a chunk of one byte, or by a frame that is not coded."""
    path = write_video(tmp_path / "a.avi", PICTURES[:20], "mpeg4", g="60", bf="0")
    first, *others = packets_of(path)
    at = first.index(b"\0\0\1\xb6")
    packets: list[bytes | None] = [first[:at] + b"\0\0\1\xb2XviD0050" + first[at:], *others]
    packets.insert(place, b"\x7f" if kind == "one byte" else not_coded(place))
    written = write_packets(tmp_path / "b.avi", path, packets)
    assert found(written) == [*range(place), *range(place - 1, 20)]


def test_two_frames_in_a_packet(tmp_path):
    """DivX and XviD pack a B-frame with the frame before it; a frame "not coded" follows."""
    pictures = PICTURES[:21]
    path = write_video(tmp_path / "a.avi", pictures, "mpeg4", bf="1", b_strategy="0", g="60")
    first, *others = packets_of(path)
    at = first.index(b"\0\0\1\xb6")
    packets: list[bytes | None] = [first[:at] + b"\0\0\1\xb2DivX503b1393p" + first[at:]]
    for reference, between in zip(others[::2], others[1::2], strict=True):
        packets += [reference + between, not_coded(1)]
    assert found(write_packets(tmp_path / "b.avi", path, packets)) == [*range(21)]


def test_fields_in_packets_of_their_own(tmp_path):
    """H.264 as camcorders write it, but no encoder of FFmpeg: two of three frames are fields."""
    contents = Path(__file__).with_name("fields.mts.gz").read_bytes()
    (tmp_path / "a.mts").write_bytes(gzip.decompress(contents))
    assert len(packets_of(tmp_path / "a.mts")) == 20 + 14
    assert found(tmp_path / "a.mts") == [*range(20)]


def test_hidden_frames_of_vp8(tmp_path):
    options = {"lag-in-frames": "0", "g": "60"}
    path = write_video(tmp_path / "a.webm", PICTURES[:20], "libvpx", **options)
    packets: list[bytes | None] = [*packets_of(path)]
    for number in (7, 14):
        packet = packets[number] or b""
        packets[number] = bytes([packet[0] & ~0x10]) + packet[1:]
    written = write_packets(tmp_path / "b.webm", path, packets)
    assert found(written) == [number for number in range(20) if number not in (7, 14)]


def trimmed(path: Path, seconds: float) -> Path:
    """Let a copy begin later: the packets from before stay, and an edit list hides them."""
    out = path.with_stem("trimmed")
    with av.open(str(path)) as given, av.open(str(out), "w") as taken:
        stream = given.streams.video[0]
        target = taken.add_stream_from_template(stream)
        shift = round(seconds / stream.time_base)
        for packet in given.demux(stream):
            if packet.size:
                packet.stream = target
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                taken.mux(packet)
    return out


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {}), ("libx264", {"g": "8", "bf": "0"}), ("mjpeg", {}), ("libx265", X265)],
)
def test_an_edit_list_hides_frames(tmp_path, codec, options):
    """With B-frames a few more are hidden: FFmpeg's writer drops those with a negative time."""
    path = trimmed(write_video(tmp_path / "a.mov", PICTURES, codec, **options), 20.4 / 24)
    assert found(path) == [*range(21, FRAMES)]
    assert "edit list hides" in probe(media(path)).warning


# --- what is no video ---------------------------------------------------------------------------


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


def test_the_largest_of_several_video_streams(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=24) for _ in range(2)]
        for stream, size in zip(streams, (32, 64), strict=True):
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for number in range(5):
            for stream in streams:
                pixels = picture(stream.width, number, stream.height, stream.width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert probe(media(path)).width == 64 and found(path) == [*range(5)]


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_list_of_other_files_is_refused(tmp_path, text):
    write_video(tmp_path / "secret.mp4", PICTURES[:5], "libx264")
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(VideoError, match="not a video file"):
        probe(media(tmp_path / "list.mp4"))


def test_a_broken_image_is_named(tmp_path):
    one = write_images(tmp_path, "ACRE_train_000000", 1, 10)
    contents = bytearray(one.files[7].read_bytes())
    contents[40:-12] = bytes(len(contents) - 52)
    one.files[7].write_bytes(contents)
    with pytest.raises(VideoError, match=r"one of its frames, ACRE_train_000000_07\.png"):
        make_decoder("pyav", 32).decode(one)
