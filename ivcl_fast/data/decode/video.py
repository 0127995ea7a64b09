"""A video file: its packets, the check that they are complete, and its frames.

A video is refused for two reasons: FFmpeg reports an error, or there are fewer frames than the
tables of the container declare. Any other anomaly is a warning.

* AVI counts its chunks in its header, and lists them in its index unless they are empty.
* MP4 and MOV list every frame; an edit list may hide some of them.
* WebM and Matroska, FLV, and fragmented MP4 declare a duration.

CATER's videos are Motion-JPEG in AVI: every packet is a JPEG image, so frame ``i`` is packet ``i``.
In other videos, decoding starts at the key frame before a frame, if timestamps make that exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.media import (
    MAX_PIXELS,
    UNDECODABLE,
    FrameIds,
    OpenMedia,
    VideoInfo,
    check_file,
    check_image,
    checked_frame_ids,
)

FORMATS = "avi,matroska,webm,mov,mp4,mpeg,mpegts,flv,ogg,gif,ivf,m4v,mjpeg,asf,h264,hevc,obu"
"""Allowed containers by FFmpeg's names; none of them can refer to other files."""
ONE_FRAME_PER_PACKET = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "png", "gif")
"""Codecs with one frame per packet, except for fields of interlaced video and dropped frames."""
DROP_BYTES = 19
"""Largest MPEG-4 packet that may repeat the previous frame."""
MP4 = ("mov,mp4,m4a,3gp,3g2,mj2",)
DURATION = ("matroska,webm", "flv")
"""Containers by FFmpeg's names; those in DURATION do not declare the number of frames."""
HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of HDR video."""
MISSING_SECONDS = 0.1
"""Tolerance of a container's duration, in addition to twice the longest gap between frames."""
HOLES = 0.05
"""Largest share of long gaps between frames that counts as damage."""


@dataclass(frozen=True)
class Packets:
    """Results of one pass over the packets of a video, in decoding order."""

    pts: list[int | None]
    shown: list[bool]
    """Whether a frame is visible by the edit list of the container."""
    keys: list[int]
    """Numbers of the key frames."""
    slots: list[int]
    """Chunk number of each packet in an AVI file; empty for other containers."""
    small: int
    """Number of packets that may repeat the previous frame."""
    seconds: float
    """End of the last packet of any stream."""


class OpenVideo(OpenMedia):
    """A video file."""

    def __init__(self, path: Path) -> None:
        check_file(path)
        self.path = path
        container, stream = open_stream(path)
        context: Any = stream.codec_context
        with container:
            self.has_images = context.name == "mjpeg"
            self._codec: str = context.codec.canonical_name
            self._format = container.format.name
            self._shape, self._transfer = (context.width, context.height), context.color_trc or 0
            self.fps, self._time_base = map(
                float, (stream.average_rate or 0, stream.time_base or 0)
            )
            self._duration = (container.duration or 0) / av.time_base
            self._tables, self._indexed = stream.frames, len(stream.index_entries)
        self._has_duration = self._format in (DURATION if self._tables else (*DURATION, *MP4))

    def _read_info(self) -> VideoInfo:
        packets = self.packets
        frames = packets.slots[-1] + 1 if packets.slots else sum(packets.shown)
        is_unclear = self.first.interlaced_frame or (packets.small and not packets.slots)
        if not self.has_images and (is_unclear or self._codec not in ONE_FRAME_PER_PACKET):
            frames = sum(1 for _ in self._all_frames())
        what = frames, self.fps, self._codec, *self._shape, *self.orientation
        return VideoInfo(*what, self.warning(frames))

    @cached_property
    def first(self) -> VideoFrame:
        first = next(self._decoded(), None)
        if first is None:
            raise VideoError("holds no frames")
        return first

    def warning(self, frames: int) -> str:
        packets, found = self.packets, list[str]()
        gaps = self._gaps(packets) if self._has_duration else []
        usual = median(gaps) if gaps else 0.0
        holes = [gap for gap in gaps if gap > 1.5 * usual]
        if 0 < len(holes) <= 3 + HOLES * len(gaps):  # more mean a variable frame rate
            found.append(f"frames are missing {len(holes)} times, up to {max(holes):.1f} seconds")
        if same := gaps.count(0):
            found.append(f"{same} of {frames} frames have the time of another")
        start = min((pts for pts in packets.pts if pts is not None), default=0) * self._time_base
        if self._has_duration and start > 2 * usual + MISSING_SECONDS:
            found.append(f"its frames begin after {start:.1f} seconds")
        missing = self._duration - packets.seconds
        if self._has_duration and missing > usual / 2 + MISSING_SECONDS / 10:
            found.append(f"its frames end {missing:.1f} seconds before its duration")
        if self._has_duration and self._duration and -missing > 2 * usual + MISSING_SECONDS:
            found.append(f"its frames end {-missing:.1f} seconds after its duration")
        if self._format == "avi" and frames > self._tables:
            found.append(f"its header declares {self._tables} of {frames} frames")
        if packets.slots and (repeated := frames - len(packets.pts)) > 0:
            found.append(f"{repeated} of {frames} frames repeat the one before: empty chunks")
        hidden = max(self._tables, len(packets.pts)) - sum(packets.shown)
        if hidden and self._format in MP4:
            found.append(f"its edit list hides {hidden} of {frames + hidden} frames")
        if hdr := HDR.get(int(self._transfer)):
            found.append(f"its colours are HDR ({hdr}) and are not converted")
        return "; ".join(found)

    @cached_property
    def packets(self) -> Packets:
        """All packets; raises :class:`VideoError` if there are fewer than the tables declare."""
        small, seconds = 0, 0.0
        pts, dts, shown, keys = list[int | None](), list[int | None](), list[bool](), list[int]()
        one_frame = 1 / self.fps if self.fps else 0
        stream, read = self._read(self._has_duration)
        for packet in read:
            if packet is None:
                break
            if self._has_duration and packet.pts is not None and packet.time_base:
                unit = float(packet.time_base)
                length = (packet.duration or 0) * unit or one_frame
                seconds = max(seconds, packet.pts * unit + length)
            if packet.stream_index != stream.index:
                continue
            if packet.is_keyframe:
                keys.append(len(pts))
            pts.append(packet.pts)
            dts.append(packet.dts)
            shown.append(not packet.is_discard)
            small += self._codec == "mpeg4" and packet.size <= DROP_BYTES
        slots = _slots(dts, max(self._tables, len(dts))) if self._format == "avi" else []
        packets = Packets(pts, shown, keys, slots, small, seconds)
        self._check_complete(packets)
        return packets

    def _read(self, all_streams: bool = False) -> tuple[VideoStream, Iterator[Packet | None]]:
        """Open the file, and return its video and an iterator over the packets.

        The last one is None, which flushes the decoder; then the file is closed. Every pass opens
        the file, because seeking is not exact in every container.
        """
        container, stream = open_stream(self.path)

        def packets() -> Iterator[Packet | None]:
            with container:
                streams = () if all_streams else (stream,)
                try:
                    yield from (packet for packet in container.demux(*streams) if packet.size)
                except av.FFmpegError as error:
                    raise VideoError(f"cannot be read: {_reason(error)}") from None
                yield None

        return stream, packets()

    def _check_complete(self, packets: Packets) -> None:
        count, promised = len(packets.pts), max(self._tables, self._indexed)
        if self._format in MP4 and self._indexed < self._tables:
            # By default, FFmpeg's index omits frames that the edit list hides.
            container, stream = open_stream(self.path, ignore_editlist="1")
            in_file = len(stream.index_entries)
            container.close()
            promised = self._indexed if in_file >= self._tables else self._tables
        # Empty chunks have no packets; there may be one after every packet, and after the last.
        step = min((b - a for a, b in itertools.pairwise(packets.slots)), default=1)
        came = packets.slots[-1] + step if packets.slots else count
        if came < promised or count < self._indexed:
            raise VideoError(f"truncated: {count} of {promised} frames")
        slack = 2 * max(self._gaps(packets), default=0.0) + MISSING_SECONDS
        if self._has_duration and count and packets.seconds + slack < self._duration:
            end = f"{packets.seconds:.1f} of {self._duration:.1f} seconds"
            raise VideoError(f"truncated: its frames end at {end}")

    def _gaps(self, packets: Packets) -> list[float]:
        """Return the seconds between the frames."""
        times = sorted(pts for pts in packets.pts if pts is not None)
        return [(after - before) * self._time_base for before, after in itertools.pairwise(times)]

    def image_packets(self) -> Iterator[Packet]:
        """Yield the packet of every frame; dropped frames repeat one. Needs :attr:`has_images`."""
        slots, before = self.packets.slots, None
        for number, packet in enumerate(self._read()[1]):
            if packet is None or packet.is_discard:
                continue
            if slots:
                dropped = slots[number] - (slots[number - 1] if number else -1) - 1
                yield from [before or packet] * dropped
            yield packet
            before = packet

    def images(self, frame_ids: FrameIds = None) -> Iterator[tuple[int, bytes]]:
        count, wanted = 0, None if frame_ids is None else {*map(int, frame_ids)}
        for count, packet in enumerate(self.image_packets(), 1):
            if wanted is None or count - 1 in wanted:
                check_image(image := bytes(packet), f"frame {count - 1}")
                yield count - 1, image
        checked_frame_ids(frame_ids, count)

    def frames(self, frame_ids: FrameIds = None) -> Iterator[tuple[int, VideoFrame]]:
        if self.has_images:
            yield from super().frames(frame_ids)
            return
        if frame_ids is not None and len(frame_ids):
            wanted = sorted({int(i) for i in frame_ids})
            if starts := self._starts(wanted):
                found = 0
                for number, frame in self._from_key_frames(wanted, starts):
                    found += 1
                    yield number, frame
                if found == len(wanted):
                    return
        yield from self._all_frames()

    def _starts(self, wanted: Sequence[int]) -> list[tuple[int, int]]:
        """Return the key packet to start from and the timestamp of each frame.

        Empty if only decoding all frames is exact.
        """
        packets = self.packets
        times = [(pts, n) for n, pts in enumerate(packets.pts) if pts is not None]
        is_unclear = packets.small or self._codec not in ONE_FRAME_PER_PACKET
        if self._format == "avi" or is_unclear or len(dict(times)) < len(packets.pts):
            return []  # AVI stores no timestamps
        times = sorted(time for time in times if packets.shown[time[1]])
        checked_frame_ids(wanted, len(times))
        starts = list[tuple[int, int]]()
        for pts, number in (times[frame] for frame in wanted):
            # Frames coded after a key frame but shown before it may depend on earlier frames.
            keys = (key for key in reversed(packets.keys) if key <= number)
            start = next((key for key in keys if (packets.pts[key] or 0) <= pts), None)
            if start is None or (starts and start < starts[-1][0]):
                return []
            starts.append((start, pts))
        return starts

    def _from_key_frames(
        self, wanted: Sequence[int], starts: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Decode only what these frames need; stop if FFmpeg returns other frames."""
        at, is_decoding = 0, False
        stream, packets = self._read()
        for number, packet in enumerate(packets):
            if not is_decoding and packet is not None:
                if number < starts[at][0]:
                    continue
                stream.codec_context.flush_buffers()
            try:
                frames = stream.decode(packet)
            except (av.FFmpegError, ValueError):
                return
            for frame in frames:
                pts = starts[at][1]
                if frame.pts is None or frame.pts > pts or frame.interlaced_frame:
                    return
                if frame.pts == pts:
                    if frame.is_corrupt:
                        return
                    yield wanted[at], frame
                    at += 1
                    if at == len(wanted):
                        return
            is_decoding = starts[at][0] <= number

    def _all_frames(self) -> Iterator[tuple[int, VideoFrame]]:
        """Decode all frames; a dropped frame of an AVI file repeats the previous one."""
        slots, decoded, number = self.packets.slots, 0, 0
        before: VideoFrame | None = None
        is_interlaced = False
        for frame in self._decoded():
            decoded += 1
            is_interlaced |= frame.interlaced_frame
            dropped = 0
            if before is None:
                dropped = slots[0] if slots else 0
            elif slots and not is_interlaced and frame.dts is not None and before.dts is not None:
                dropped = frame.dts - before.dts - 1
            for _ in range(dropped):
                yield number, before or frame
                number += 1
            yield number, frame
            number, before = number + 1, frame
        self._check_decoded(decoded, is_interlaced)
        while slots and not is_interlaced and before is not None and number <= slots[-1]:
            yield number, before
            number += 1

    def _check_decoded(self, decoded: int, is_interlaced: bool) -> None:
        """Raise :class:`VideoError` if there are fewer frames than packets require."""
        required = sum(self.packets.shown) - self.packets.small
        if is_interlaced:  # a packet may have one field
            required = (required + 1) // 2
        if self._codec not in ONE_FRAME_PER_PACKET or self._format not in ("avi", *MP4, *DURATION):
            required = 1
        if decoded < max(required, 1):
            raise VideoError(f"expected {required} frames by its packets, decoded {decoded}")

    def _decoded(self) -> Iterator[VideoFrame]:
        """Decode all packets."""
        self.packets  # noqa: B018  raises an error for an incomplete file
        stream, packets = self._read()
        for packet in packets:
            try:
                frames = stream.decode(packet)
            except (av.FFmpegError, ValueError):
                raise VideoError(UNDECODABLE) from None
            if any(frame.is_corrupt for frame in frames):
                raise VideoError(UNDECODABLE)
            yield from frames


def open_stream(path: Path, **options: str) -> tuple[InputContainer, VideoStream]:
    """Open a video file and its video stream with the largest frames."""
    try:
        # The prefix allows a colon in the name.
        container = av.open(f"file:{path}", options={"format_whitelist": FORMATS, **options})
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"not a video file: {_reason(error)}") from None
    cover = Disposition.attached_pic  # cover art of a music file
    streams = [one for one in container.streams.video if not one.disposition & cover]
    if not streams:
        raise VideoError("holds no video stream")
    known = [one for one in streams if one.codec_context is not None]
    if not known:
        raise VideoError("its codec is not known to FFmpeg")
    stream = max(known, key=lambda one: one.codec_context.width * one.codec_context.height)
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, stream


def _slots(dts: Sequence[int | None], chunks: int) -> list[int]:
    """Return the chunk number of each packet of an AVI file; empty if unclear."""
    slots = [slot for slot in dts if slot is not None]
    is_clear = len(slots) == len(dts) > 0 and slots[0] >= 0 and slots[-1] < chunks
    increasing = all(before < after for before, after in itertools.pairwise(slots))
    return slots if is_clear and increasing else []


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
