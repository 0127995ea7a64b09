"""The DALI decoder: images by nvJPEG and videos by NVDEC on a GPU, or both on the CPU.

On a GPU, frames stay there until they are torch tensors (DLPack); only PNG images are decoded on
the CPU. A pipeline uses one NVDEC, so each NVDEC needs a decoder in its own thread or process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.media import (
    FrameIds,
    OpenMedia,
    Orientation,
    Square,
    checked_frame_ids,
    square_place,
    with_huffman_tables,
)
from ivcl_fast.data.decode.pyav import TOLERANCE, PyAVDecoder, open_media
from ivcl_fast.data.decode.video import OpenVideo
from ivcl_fast.data.workers import NVDECS, usable_cpus

log = logging.getLogger(__name__)

TRIAL_FRAMES = 16
TRIAL_DIFFERENCE = 2.0
"""Largest mean difference from FFmpeg's frames, in levels of 255. DALI on a CPU differs by up to
0.8, a wrong colour range by 2.1 to 15."""
BATCH = 64
"""Images per run."""
SEQUENCE_BYTES = 2**28
"""Largest sequence of frames before resizing; longer ones are decoded in parts."""
NOT_THE_GPU = (
    "SYMBOL_NOT_FOUND",
    "CUDA_ERROR_INVALID_VALUE",
    "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_NOT_SUPPORTED",
)
"""CUDA errors after which the GPU still works: the driver's video library is missing, or NVDEC does
not support the bit depth, size or profile of a video."""


class DALIDecoder(PyAVDecoder):
    """The same interface as PyAV's decoder.

    PyAV decodes what DALI cannot, on the CPU; each reason is logged once. What a GPU decodes
    depends on its generation, its driver and the container, so DALI's frames of the first file of
    each codec and container are compared with FFmpeg's; if they differ, PyAV decodes such files.
    """

    part_bytes = 2**30  # DALI reads the file again for every part

    def __init__(self, image_size: int, gpu: int | None = None) -> None:
        """``gpu``: index of the GPU; None decodes on the CPU."""
        super().__init__(image_size)
        self.gpu = gpu
        self._pipelines: dict[str, Any] = {}
        self._agrees: dict[tuple[str, str], bool] = {}
        """Whether DALI's frames match FFmpeg's, by codec and container."""
        self._logged: set[str] = set()

    def decode_open(
        self, opened: OpenMedia, frame_ids: FrameIds = None, square: Square = "none"
    ) -> torch.Tensor:
        kind = opened.info.codec, opened.path.suffix.lower()
        try:
            if self._agrees.get(kind, True):
                frames = self.decode_by_dali(opened, frame_ids, square)
                if kind not in self._agrees and len(frames):
                    first = (range(len(frames)) if frame_ids is None else frame_ids)[:TRIAL_FRAMES]
                    expected = super().decode_open(opened, first, square)
                    self._agrees[kind] = _agree(frames[: len(first)].cpu(), expected)
                if self._agrees.get(kind, True):
                    return frames
            raise VideoError("DALI's frames differ from FFmpeg's")
        except VideoError as error:
            reason = f"{' in '.join(kind)}: {error}"
            if reason not in self._logged:
                self._logged.add(reason)
                log.warning("PyAV decodes a file instead of DALI: %s", reason)
            return super().decode_open(opened, frame_ids, square)

    def parts(self, media: Media, square: Square = "none") -> Iterator[torch.Tensor]:
        opened = open_media(media)
        frames = opened.info.frames
        for start in range(0, frames, self.part_frames):
            ids = range(start, min(start + self.part_frames, frames))
            yield self.decode_open(opened, ids, square)

    def decode_by_dali(
        self, opened: OpenMedia, frame_ids: FrameIds = None, square: Square = "none"
    ) -> torch.Tensor:
        """Decode like :meth:`decode_open`, without PyAV."""
        size = self.image_size
        info = opened.info
        upright = info.orientation.turned(info.height, info.width)
        height, width, top, left = square_place(square, size, *upright)
        if isinstance(opened, OpenVideo) and not opened.has_images:
            parts = self._video(opened, frame_ids, height, width)
        else:
            parts = self._images(opened, frame_ids, height, width)
        if not parts:
            return torch.empty(0, 3, size, size, dtype=torch.uint8)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[:, :, top : top + size, left : left + size]

    def _images(
        self, opened: OpenMedia, frame_ids: FrameIds, height: int, width: int
    ) -> list[torch.Tensor]:
        orientation = opened.info.orientation
        encoded = [
            np.frombuffer(with_huffman_tables(image), np.uint8)
            for image in opened.images(frame_ids)
        ]
        parts = [encoded[start : start + BATCH] for start in range(0, len(encoded), BATCH)]
        size = np.array(orientation.turned(height, width), np.float32)
        return [
            _upright(self._run("images", encoded=part, size=[size] * len(part)), orientation)
            for part in parts
        ]

    def _video(
        self, opened: OpenVideo, frame_ids: FrameIds, height: int, width: int
    ) -> list[torch.Tensor]:
        info = opened.info
        if info.warning:
            raise VideoError(f"DALI may read it differently: {info.warning}")
        ids = np.asarray(checked_frame_ids(frame_ids, info.frames), np.int32)
        encoded = np.fromfile(opened.path, np.uint8)
        size = np.array(info.orientation.turned(height, width), np.float32)
        step = max(1, SEQUENCE_BYTES // (3 * info.width * info.height))
        parts = []
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            (frames,) = self._run("video", encoded=[encoded], frames=[part], size=[size])
            parts.append(_upright(frames, info.orientation))
        return parts

    def _run(self, kind: str, **inputs: list[np.ndarray]) -> torch.Tensor:
        """Run a pipeline once and copy the result, since DALI reuses its buffers."""
        if kind not in self._pipelines:
            self._pipelines[kind] = _pipeline(kind, self.gpu)
        pipeline = self._pipelines[kind]
        try:
            for name, samples in inputs.items():
                pipeline.feed_input(name, samples)
            (frames,) = pipeline.run()
        except RuntimeError as error:
            del self._pipelines[kind]  # DALI cannot continue after an error
            reason = str(error).rpartition("encountered:")[2].strip()  # follows the pipeline's code
            gpu_failed = "CUDA" in reason and not any(error in reason for error in NOT_THE_GPU)
            if gpu_failed or "out of memory" in reason:  # not a fault of the file
                raise
            first_line = reason.partition("\n")[0]
            raise VideoError(f"DALI cannot decode one of its frames: {first_line}") from None
        copy = torch.from_dlpack(frames.as_tensor()).clone()
        if copy.is_cuda:  # DALI may write its next frames only after the copy
            torch.cuda.current_stream(copy.device).synchronize()
        return copy


def _agree(frames: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether frames ``[F, 3, S, S]`` have the expected colours and order."""
    flat, flat_expected = (x.float().flatten(1) for x in (frames, expected))
    differences = torch.cdist(flat, flat_expected, p=1) / flat.shape[1]  # [F, F]
    same = differences.diagonal()
    moved = (same > TOLERANCE.mean) & (same > 2 * differences.amin(1))
    return bool(same.mean() <= TRIAL_DIFFERENCE and not moved.any())


def _upright(frames: torch.Tensor, orientation: Orientation) -> torch.Tensor:
    """Mirror and turn frames ``[..., H, W]``, which DALI does not do."""
    if orientation.mirrored:
        frames = frames.flip(-1)
    return frames.rot90(orientation.rotation, (-2, -1)) if orientation.rotation else frames


def _pipeline(kind: str, gpu: int | None) -> Any:
    """Build the pipeline from encoded ``images`` to ``[F, 3, H, W]``, or from an encoded ``video``
    and frame indices to ``[1, F, 3, H, W]``."""
    device = "cpu" if gpu is None else "mixed"
    batch_size = BATCH if kind == "images" else 1
    # With a GPU, the CPU still decodes the Huffman codes of images.
    threads = 1 if gpu is None else max(1, usable_cpus() // NVDECS)
    options: dict[str, Any] = dict(num_threads=threads, device_id=gpu, prefetch_queue_depth=1)

    @pipeline_def(batch_size=batch_size, **options)
    def to_frames():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        if kind == "images":
            frames = fn.decoders.image(
                encoded, device=device, output_type=types.RGB, adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # match the colours of a CPU
            )  # fmt: skip
        else:
            ids = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
            # Padding would replace missing frames by black ones.
            frames = fn.decoders.video(encoded, device=device, frames=ids, pad_mode="none")
        size = fn.external_source(name="size", dtype=types.DALIDataType.FLOAT, ndim=1)
        triangular = types.DALIInterpType.INTERP_TRIANGULAR
        resized = fn.resize(frames, size=size, interp_type=triangular, antialias=True)
        return fn.transpose(resized, perm=[2, 0, 1] if kind == "images" else [0, 3, 1, 2])

    pipeline = to_frames()
    pipeline.build()
    return pipeline
