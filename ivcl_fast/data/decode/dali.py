"""The DALI decoder: images by nvJPEG and videos by NVDEC on a GPU, or both on the CPU.

On a GPU, only PNG images are decoded on the CPU. A pipeline uses one NVDEC, so each NVDEC needs a
decoder in its own thread or process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import TOLERANCE, PyAVDecoder, open_media
from ivcl_fast.data.decode.media import (
    FrameIds,
    OpenMedia,
    Square,
    checked_frame_ids,
    square_place,
    with_huffman_tables,
)
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


class DALIDecoder(PyAVDecoder):
    """The same interface as PyAV's decoder.

    PyAV decodes what DALI cannot, on the CPU; each reason is logged once. What a GPU decodes
    depends on its generation, its driver and the container, so DALI's frames of the first file of
    each codec and container are compared with FFmpeg's; if they differ, PyAV decodes such files.
    """

    part_bytes = 2**30  # DALI reads the file again for every part

    def __init__(self, image_size: int, device: torch.device | None = None) -> None:
        """``device``: the GPU to use; by default the current one, or the CPU without a GPU."""
        super().__init__(image_size)
        self.gpu: int | None = None
        if torch.cuda.is_available():
            index = device.index if device is not None and device.type == "cuda" else None
            self.gpu = torch.cuda.current_device() if index is None else index
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
                    self._agrees[kind] = _agree(frames[: len(first)], expected)
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
        size, orientation = self.image_size, opened.info.orientation
        upright = orientation.turned(opened.info.height, opened.info.width)
        height, width, top, left = square_place(square, size, *upright)
        run = self._images if opened.has_images else self._video
        stored = np.array(orientation.turned(height, width), np.float32)
        parts = [*run(opened, checked_frame_ids(frame_ids, opened.info.frames), stored)]
        if not parts:
            return torch.empty(0, 3, size, size, dtype=torch.uint8)
        frames = torch.cat(parts)
        if orientation.mirrored:
            frames = frames.flip(-1)
        frames = frames.rot90(orientation.rotation, (-2, -1))
        return frames[:, :, top : top + size, left : left + size]

    def _images(
        self, opened: OpenMedia, ids: Sequence[int] | np.ndarray, size: np.ndarray
    ) -> Iterator[torch.Tensor]:
        """Yield frames ``[F, 3, H, W]`` as stored; ``size``: their height and width."""
        found = dict(opened.images(ids))
        images = [np.frombuffer(with_huffman_tables(found[int(i)]), np.uint8) for i in ids]
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            yield self._run("images", encoded=part, size=[size] * len(part))

    def _video(
        self, opened: OpenMedia, ids: Sequence[int] | np.ndarray, size: np.ndarray
    ) -> Iterator[torch.Tensor]:
        if opened.info.warning:
            raise VideoError(f"DALI may read it differently: {opened.info.warning}")
        encoded = np.fromfile(opened.path, np.uint8)
        step = max(1, SEQUENCE_BYTES // (3 * opened.info.width * opened.info.height))
        for start in range(0, len(ids), step):
            part = np.asarray(ids[start : start + step], np.int32)
            yield self._run("video", encoded=[encoded], frames=[part], size=[size])[0]

    def _run(self, kind: str, **inputs: list[np.ndarray]) -> torch.Tensor:
        """Run a pipeline once and copy the result, since DALI reuses its buffers."""
        if kind not in self._pipelines:
            self._pipelines[kind] = _pipeline(kind, self.gpu)
        pipeline = self._pipelines[kind]
        try:
            for name, samples in inputs.items():
                pipeline.feed_input(name, samples)
            (frames,) = pipeline.run()
            frames = frames if self.gpu is None else frames.as_cpu()
            return torch.from_numpy(np.array(frames.as_array()))
        except RuntimeError as error:
            del self._pipelines[kind]  # DALI cannot continue after an error
            reason = str(error).rpartition("encountered:")[2].strip()  # follows the pipeline's code
            first_line = reason.partition("\n")[0]
            raise VideoError(f"DALI cannot decode one of its frames: {first_line}") from None


def _agree(frames: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether frames ``[F, 3, S, S]`` have the expected colours and order."""
    flat, flat_expected = (x.float().flatten(1) for x in (frames, expected))
    differences = torch.cdist(flat, flat_expected, p=1) / flat.shape[1]  # [F, F]
    same = differences.diagonal()
    moved = (same > TOLERANCE["mean"]) & (same > 2 * differences.amin(1))
    return bool(same.mean() <= TRIAL_DIFFERENCE and not moved.any())


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
