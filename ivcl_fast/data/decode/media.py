"""Open media: a video file, or an image file per frame.

Incomplete media are refused, because labels may describe the last frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ivcl_fast.data.crop import Orientation
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.images import (
    check_image,
    exif_orientation,
    image_codec,
    image_size,
    is_image,
)
from ivcl_fast.data.decode.info import (
    FrameIds,
    OpenMedia,
    VideoInfo,
    check_file,
    checked_frame_ids,
)
from ivcl_fast.errors import UserError


@contextmanager
def open_media(media: Media) -> Iterator[OpenMedia]:
    """Open media to probe and decode them.

    Raises :class:`VideoError` for media that cannot be used, and :class:`UserError` if the system
    cannot read a file, which may be intact.
    """
    from ivcl_fast.data.decode.video import OpenVideo  # slow: imports PyAV

    if not media.files:
        raise VideoError("its frames are missing")
    with readable(media):
        if is_image(media.files[0]):
            yield OpenImages(media.files)
        else:
            yield OpenVideo(media.files[0])


@contextmanager
def readable(media: Media) -> Iterator[None]:
    """Raise :class:`UserError` instead of :class:`VideoError` if the system cannot read a file.

    FFmpeg treats a disk error as the end of the file.
    """
    try:
        yield
    except VideoError:
        for path in media.files:
            try:
                if path.is_file():  # opening a pipe would wait for a writer
                    with path.open("rb") as file:
                        while file.read(2**20):
                            pass
            except (FileNotFoundError, ValueError):  # ValueError: a zero byte in its name
                continue
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        raise


def probe(media: Media) -> VideoInfo:
    """Return what media contain; raises :class:`VideoError` for unusable ones."""
    with open_media(media) as opened:
        return opened.info


class OpenImages(OpenMedia):
    """Image files, one per frame."""

    has_images = True

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.path = files, files[0]

    def frame_name(self, number: int) -> str:
        return self.files[number].name

    def _read_info(self) -> VideoInfo:
        for path in self.files:
            check_file(path, f"{path.name} ")
        (first,) = self.images([0])
        size = image_size(first)
        return VideoInfo(len(self.files), 0.0, image_codec(first), *size, *exif_orientation(first))

    def images(self, frame_ids: FrameIds = None) -> list[bytes]:
        images = []
        for number in checked_frame_ids(frame_ids, len(self.files)):
            path = self.files[number]
            check_file(path, f"{path.name} ")
            try:
                images.append(path.read_bytes())
            except OSError as error:
                raise VideoError(f"{path.name} cannot be opened: {error.strerror}") from None
            check_image(images[-1], path.name)
        return images

    def all_images(self) -> Iterator[bytes]:
        for number in range(len(self.files)):
            yield from self.images([number])

    def orientation(self, image: bytes) -> Orientation:
        return exif_orientation(image)
