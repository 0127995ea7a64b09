"""Encodes the pictures of the synthetic data sets as videos."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

import av
import numpy as np


def encode_video(
    file: BinaryIO,
    pictures: Iterator[np.ndarray],
    *,
    container: str,
    codec: str,
    pixel_format: str,
    fps: int,
    options: dict[str, str],
) -> None:
    """Encode at least one picture, uint8 RGB ``[height, width, 3]`` each, in one thread.

    FFmpeg's flag "bitexact" leaves out version strings and random ids, so that the bytes depend on
    the pictures only.
    """
    options = options | {"flags": "+bitexact", "threads": "1"}
    encoded = io.BytesIO()  # PyAV prints tracebacks of a file that cannot be written
    with av.open(encoded, "w", format=container, options={"fflags": "+bitexact"}) as muxer:
        stream: Any = muxer.add_stream(codec, rate=fps, options=options)
        first = next(pictures)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixel_format
        for picture in chain([first], pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            muxer.mux(stream.encode(frame))
        muxer.mux(stream.encode())
    file.write(encoded.getbuffer())
