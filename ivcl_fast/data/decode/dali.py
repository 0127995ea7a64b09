"""The DALI decoder: images by nvJPEG, videos by NVDEC on a GPU; both on the CPU without one.

On a GPU frames are decoded, resized and handed to torch where they are (DLPack); what DALI has no
GPU decoder for, PNG, it decodes on the CPU and resizes on the GPU. A pipeline serves one thread and
drives one NVDEC: as many decoders, each in its thread or process, use as many NVDECs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.crop import WHOLE, Crop
from ivcl_fast.data.decode.jpeg import with_huffman_tables
from ivcl_fast.data.decode.probe import check_frame_ids, probe, read_images
from ivcl_fast.data.decode.pyav import has_image_frames

BATCH = 64
"""Images per run."""
SEQUENCE_BYTES = 2**28
"""Largest sequence of whole frames held at once; longer ones are decoded in pieces."""


class DALIDecoder:
    """See :class:`ivcl_fast.data.decode.decoder.Decoder`."""

    name = "dali"

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._pipelines: dict[str, Any] = {}

    def decode(
        self,
        media: Media,
        frame_ids: Sequence[int] | np.ndarray | None = None,
        crop: Crop = WHOLE,
    ) -> torch.Tensor:
        size = self.image_size
        height, width, top, left = crop.placed(size)
        if has_image_frames(media):
            parts = self._images(read_images(media, frame_ids), height, width)
        else:
            parts = self._video(media, frame_ids, height, width)
        if not parts:
            return torch.empty(0, 3, size, size, dtype=torch.uint8)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[:, :, top : top + size, left : left + size]

    def _images(self, images: Sequence[bytes], height: int, width: int) -> list[torch.Tensor]:
        encoded = [np.frombuffer(with_huffman_tables(image), np.uint8) for image in images]
        parts = [encoded[start : start + BATCH] for start in range(0, len(encoded), BATCH)]
        sizes = np.array([height, width], np.float32)
        return [self._run("images", encoded=part, size=[sizes] * len(part)) for part in parts]

    def _video(
        self,
        media: Media,
        frame_ids: Sequence[int] | np.ndarray | None,
        height: int,
        width: int,
    ) -> list[torch.Tensor]:
        info = probe(media)
        check_frame_ids(frame_ids, info.frames)
        ids = np.asarray(range(info.frames) if frame_ids is None else frame_ids, np.int32)
        encoded = np.fromfile(media.files[0], np.uint8)
        if info.rotation % 2:  # DALI does not turn frames
            height, width = width, height
        size = np.array([height, width], np.float32)
        step = max(1, SEQUENCE_BYTES // (3 * info.width * info.height))
        parts = []
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            (frames,) = self._run("video", encoded=[encoded], frames=[part], size=[size])
            parts.append(frames.rot90(info.rotation, (-2, -1)) if info.rotation else frames)
        return parts

    def _run(self, kind: str, **inputs: list[np.ndarray]) -> torch.Tensor:
        """One pass through a pipeline: a tensor of its own, whatever DALI does to its buffers."""
        if kind not in self._pipelines:
            self._pipelines[kind] = _images_pipeline() if kind == "images" else _video_pipeline()
        pipeline = self._pipelines[kind]
        try:
            for name, samples in inputs.items():
                pipeline.feed_input(name, samples)
            (frames,) = pipeline.run()
        except RuntimeError as error:
            del self._pipelines[kind]  # DALI does not go on after an error
            reason = str(error).rpartition("encountered:")[2].strip()  # behind the pipeline's code
            if "CUDA" in reason or "out of memory" in reason:  # the GPU's fault, not the file's
                raise
            first_line = reason.partition("\n")[0]
            raise VideoError(f"DALI cannot decode one of its frames: {first_line}") from None
        copy = torch.from_dlpack(frames.as_tensor()).clone()
        if copy.is_cuda:  # DALI must not write its next frames before they are copied
            torch.cuda.current_stream(copy.device).synchronize()
        return copy


def gpu() -> int | None:
    """The GPU of this process; under torchrun its own."""
    if not torch.cuda.is_available():
        return None
    return int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))


def _options(batch_size: int) -> dict[str, Any]:
    return dict(batch_size=batch_size, num_threads=1, device_id=gpu(), prefetch_queue_depth=1)


def _resized(frames: Any) -> Any:
    size = fn.external_source(name="size", dtype=types.DALIDataType.FLOAT, ndim=1)
    return fn.resize(
        frames, size=size, interp_type=types.DALIInterpType.INTERP_TRIANGULAR, antialias=True
    )


def _images_pipeline() -> Any:
    """Encoded images to ``[F, 3, H, W]``."""
    device = "cpu" if gpu() is None else "mixed"

    @pipeline_def(**_options(BATCH))
    def images_to_frames():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(
            encoded, device=device, output_type=types.RGB, adjust_orientation=False
        )
        return fn.transpose(_resized(images), perm=[2, 0, 1])

    return _built(images_to_frames())


def _video_pipeline() -> Any:
    """An encoded video and the frames wanted of it to ``[1, F, 3, H, W]``."""
    device = "cpu" if gpu() is None else "mixed"

    @pipeline_def(**_options(1))
    def video_to_frames():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        ids = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        frames = fn.decoders.video(encoded, device=device, frames=ids)
        return fn.transpose(_resized(frames), perm=[0, 3, 1, 2])

    return _built(video_to_frames())


def _built(pipeline: Any) -> Any:
    pipeline.build()
    return pipeline
