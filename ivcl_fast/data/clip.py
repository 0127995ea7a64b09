"""A video from a file, as the models take it: the frames that training and evaluation see."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import DecoderName, choose_decoder, make_decoder, resolve_decoder
from ivcl_fast.data.decode.given import given_media
from ivcl_fast.data.decode.images import IMAGE_SUFFIXES, is_image
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.errors import UserError

FilePath = str | os.PathLike[str]


def load_clip(
    path: FilePath | Sequence[FilePath], cfg: IVCLConfig, decoder: DecoderName = "auto"
) -> Tensor:
    """A video as a model of these sizes takes it: uint8 RGB ``[1, T, 3, H, W]`` on the CPU.

    ``path``: a video file; a folder with its frames as images, in the order of their names, where
    numbers count by value; or a list of image files. Of the frames T are taken, evenly spaced from
    the first to the last (one: the last), some again where there are fewer; each is resized as a
    whole to the square, antialiased. ``decoder``: auto, dali or pyav, which agree within
    :data:`~ivcl_fast.data.decode.decoder.TOLERANCE`.

    Raises :class:`UserError`, in one line, for what is not there or cannot be decoded.
    """
    resolve_decoder(decoder)
    try:
        return decode_clip(media_at(path), cfg, decoder).cpu().unsqueeze(0)
    except VideoError as error:
        name = path if isinstance(path, str | os.PathLike) else f"{len(path)} images"
        raise UserError(f"{name}: {error}") from None


def decode_clip(media: Media, cfg: IVCLConfig, decoder: DecoderName = "auto") -> Tensor:
    """Uint8 ``[T, 3, H, W]`` on the decoder's device; raises :class:`VideoError`."""
    from ivcl_fast.data.decode.probe import probe  # imports PyAV, which takes its time

    info = probe(media)
    chosen, _ = choose_decoder(info, decoder)
    ids = frame_ids(info.frames, cfg.num_frames)
    return make_decoder(chosen, cfg.image_size).decode(media, ids)


def media_at(path: FilePath | Sequence[FilePath]) -> Media:
    """Media as :func:`load_clip` takes them."""
    if isinstance(path, str | os.PathLike):
        return given_media(Path(path), None)
    files = tuple(map(Path, path))
    for file in files:
        if not is_image(file):
            raise UserError(f"{file}: is no image; accepted in a list: {', '.join(IMAGE_SUFFIXES)}")
    return Media("images", files)
