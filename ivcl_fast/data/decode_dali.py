"""The DALI decoder: nvJPEG on a GPU, libjpeg-turbo without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from .index import VideoError, read_jpegs
from .jpeg import with_huffman_tables

BATCH = 64


class DALIDecoder:
    """See :class:`ivcl_fast.data.decode.Decoder`."""

    name = "dali"

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._pipeline: Any = None

    def decode(self, path: Path, frame_ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        jpegs = read_jpegs(path, frame_ids)
        out = np.empty((len(jpegs), 3, self.image_size, self.image_size), np.uint8)
        for start in range(0, len(jpegs), BATCH):
            part = jpegs[start : start + BATCH]
            out[start : start + len(part)] = self._run(part)
        return out

    def _run(self, jpegs: list[bytes]) -> np.ndarray:
        if self._pipeline is None:
            self._pipeline = _pipeline(self.image_size)
        images = [np.frombuffer(with_huffman_tables(jpeg), np.uint8) for jpeg in jpegs]
        try:
            self._pipeline.feed_input("jpegs", images)
            (frames,) = self._pipeline.run()
        except RuntimeError:
            self._pipeline = None  # DALI does not go on after an error
            raise VideoError("DALI cannot decode one of its frames") from None
        return frames.as_cpu().as_array()


def _pipeline(image_size: int):
    """JPEG images to ``[F, 3, S, S]`` uint8, resized where they are decoded."""
    gpu = torch.cuda.is_available()
    device_id: Any = torch.cuda.current_device() if gpu else None

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
    def jpegs_to_frames():
        jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(jpegs, device="mixed" if gpu else "cpu", output_type=types.RGB)
        size = (image_size, image_size)
        images = fn.resize(images, size=size, interp_type=types.INTERP_TRIANGULAR, antialias=True)
        return fn.transpose(images, perm=[2, 0, 1])

    pipeline = jpegs_to_frames()
    pipeline.build()
    return pipeline
