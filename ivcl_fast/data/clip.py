"""Load a clip from a video file, a folder of images, or a list of images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from torch import Tensor

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.dataset import IMAGE_SUFFIXES, Media, VideoError, is_image
from ivcl_fast.data.sampling import clip_stride, frame_ids
from ivcl_fast.errors import MOST, UserError

if TYPE_CHECKING:  # imports PyAV
    from ivcl_fast.data.decode.decoder import DecoderName
    from ivcl_fast.data.decode.media import Square

FilePath = str | os.PathLike[str]
SAMPLE = Path("ivcl_fast/sample.avi")
"""Name of the video that comes with the package, a synthetic one of CATER, in any folder."""


def load_clip(
    path: FilePath | Sequence[FilePath],
    cfg: IVCLConfig,
    decoder: DecoderName = "auto",
    frame_stride: int = 0,
    crop: Square = "none",
    clip_seconds: float = 0.0,
) -> Tensor:
    """Load a clip for a model with this config: uint8 RGB ``[1, T, 3, H, W]`` on the CPU.

    Takes T evenly spaced frames, including the first and the last; a single frame is the last one.
    Shorter videos repeat frames. Each frame, or its center square, is resized with antialiasing.

    Args:
        path: a video file, such as the package's ``ivcl_fast/sample.avi``; a folder of images, one
            per frame, in natural order of their names (2 before 10); or a list of image files.
        cfg: image size and number of frames.
        decoder: ``auto``, ``dali`` or ``pyav``. The decoders agree within
            :data:`~ivcl_fast.data.decode.decoder.TOLERANCE`.
        frame_stride: take every n-th frame around the middle of the video, as in training (see the
            model card); 0: frames evenly spaced over the whole video.
        crop: ``none`` or ``center``, as in training (see the model card).
        clip_seconds: instead of ``frame_stride``, take frames evenly spaced over this many seconds
            around the middle of the video.

    Raises:
        UserError: the path does not exist, or its content cannot be decoded.

    Example::

        >>> model = ivcl_fast.IVCLClassifier.from_pretrained("runs/my_run/finetune")
        >>> logits = model(ivcl_fast.load_clip("video.mp4", model.cfg))
    """
    from ivcl_fast.data.decode.decoder import make_decoder, open_media, resolve_decoder
    from ivcl_fast.data.decode.media import Square

    chosen = resolve_decoder(decoder)
    if not 0 <= frame_stride <= MOST:
        raise UserError(f"frame_stride: expected 0 to {MOST:,}, got {frame_stride}")
    if not 0 <= clip_seconds <= MOST or (clip_seconds and frame_stride):
        expected = "0 with frame_stride" if frame_stride else f"0 to {MOST:,}"
        raise UserError(f"clip_seconds: expected {expected}, got {clip_seconds}")
    if crop not in get_args(Square):
        raise UserError(f"crop: expected one of {', '.join(get_args(Square))}, got {crop!r}")
    try:
        if isinstance(path, str | os.PathLike):
            media = find_media(Path(path))
        else:
            media = Media("images", tuple(map(Path, path)))
            if other := [file for file in media.files if not is_image(file)]:
                raise UserError(f"{other[0]}: expected an image: {', '.join(IMAGE_SUFFIXES)}")
        opened = open_media(media)
        info, count = opened.info, cfg.num_frames
        stride = clip_stride(frame_stride, clip_seconds, info.fps, count)
        ids = frame_ids(info.frames, count, stride=stride)
        frames = make_decoder(chosen, cfg.image_size).decode_open(opened, ids, crop)
        return frames.unsqueeze(0)
    except VideoError as error:
        name = path if isinstance(path, str | os.PathLike) else f"{len(path)} images"
        raise UserError(f"{name}: {error}") from None


def find_media(path: Path, num_frames: int | None = None) -> Media:
    """Return the video file ``path``, or the images in the folder ``path`` ordered by name.

    With ``num_frames``, it must be a folder of exactly that many images. Raises
    :class:`VideoError` for anything else.
    """
    expected = "a video file, or a folder of images, one per frame"
    if num_frames is not None:
        context = num_frames - 1
        expected = f"a folder of {num_frames} images in order: {context} of context, then the query"
    if path == SAMPLE and not path.exists():
        path = Path(__file__).parents[1] / SAMPLE.name
    if path.is_dir():
        media = Media(path.resolve().name, tuple(images_in(path)))
        got = f"{len(media.files)} images"
        is_valid = bool(media.files) and num_frames in (None, len(media.files))
    else:
        media = Media(path.stem, (path,))
        got = "a single file" if path.exists() else "no such file or folder"
        is_valid = path.is_file() and num_frames is None and not is_image(path)
    if not is_valid:
        raise VideoError(f"expected {expected}, got {got}")
    return media


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder in order, without hidden files; none if it does not exist."""
    images = [file for file in folder.glob("*") if is_image(file) and file.name[0] != "."]
    return sorted(images, key=image_order)


def image_order(path: Path) -> tuple[list[str | int], str]:
    """Return a key for natural sorting: 10 follows 9; the full name breaks ties (01 and 1)."""
    parts = re.split(r"(\d{1,999})", path.name)  # Python refuses numbers of thousands of digits
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], path.name
