"""Indexed media: clips are decoded without probing the file again.

For Motion-JPEG, the index has the position of every frame, so only the frames of a clip are read,
and checked to be complete images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import ChosenDecoder
from ivcl_fast.data.decode.media import (
    FrameIds,
    OpenMedia,
    VideoInfo,
    check_file,
    check_image,
    checked_frame_ids,
    is_image,
)
from ivcl_fast.data.decode.pyav import open_media, readable
from ivcl_fast.data.decode.video import OpenVideo


@dataclass(frozen=True)
class Indexed:
    """What media contain, and the positions of their frames."""

    info: VideoInfo
    places: np.ndarray | None = None
    """Offset and size in bytes of every frame, int64 ``[F, 2]``; None unless frames are images."""


def index_one(media: Media) -> Indexed:
    """Probe media and locate their frames; raises :class:`VideoError` for unusable ones."""
    with open_media(media) as opened:
        info = opened.info
        places = _places(opened) if isinstance(opened, OpenVideo) and opened.has_images else None
    if places is not None:  # decoders count images and ignore the header
        info = replace(info, frames=len(places))
    return Indexed(info, places)


def _places(opened: OpenVideo) -> np.ndarray | None:
    """Locate the frames; None if the file does not contain FFmpeg's packets unchanged."""
    places = []
    with opened.path.open("rb") as file:
        for packet in opened.image_packets():
            at, image = packet.pos, bytes(packet)
            if at is None or os.pread(file.fileno(), len(image), at) != image:
                return None
            places.append((at, len(image)))
    return np.array(places, np.int64).reshape(-1, 2)


@contextmanager
def open_indexed(media: Media, indexed: Indexed, decoder: ChosenDecoder) -> Iterator[OpenMedia]:
    """Open media like :func:`~ivcl_fast.data.decode.pyav.open_media`, without probing."""
    path = media.files[0]
    if indexed.places is not None or (decoder == "dali" and not is_image(path)):
        with readable(media):
            yield IndexedVideo(path, indexed)
    else:
        with open_media(media) as opened:
            yield opened


class IndexedVideo(OpenMedia):
    """A video file that is read without FFmpeg."""

    def __init__(self, path: Path, indexed: Indexed) -> None:
        self.path, self._indexed = path, indexed
        self.has_images = indexed.places is not None
        if not self.has_images:
            check_file(path)

    def _read_info(self) -> VideoInfo:
        return self._indexed.info

    def frame_name(self, number: int) -> str:
        """Return the byte position, because frame numbers of a clip are not those of the video."""
        assert self._indexed.places is not None
        return f"the image at byte {self._indexed.places[number, 0]:,}"

    def images(self, frame_ids: FrameIds = None) -> list[bytes]:
        places = self._indexed.places
        assert places is not None  # because of has_images
        images = []
        try:
            with self.path.open("rb") as file:
                for number in checked_frame_ids(frame_ids, len(places)):
                    at, size = places[number].tolist()
                    images.append(os.pread(file.fileno(), size, at))
                    if len(images[-1]) < size:
                        length = os.fstat(file.fileno()).st_size
                        raise VideoError(
                            f"truncated: {length:,} bytes, a frame ends at {at + size:,}"
                        )
                    check_image(images[-1], self.frame_name(number))
        except OSError as error:
            raise VideoError(f"cannot be read: {error.strerror}") from None
        return images
