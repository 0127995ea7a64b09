"""A training step as one CUDA graph, recorded once and launched by a single call.

A step of ``base64`` launches about 900 kernels. Launching them one by one takes the host about 5
ms, as long as a GPU takes for a small batch; a graph launches them all at once. A replay repeats
the recorded operations on the same memory, so everything that changes between steps must be a
tensor at a fixed address: the batch, the step number and the learning rate. Weights, gradients and
optimiser state already keep their addresses.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ivcl_fast.distributed import group as distributed

log = logging.getLogger(__name__)

WARM_UP = 3
"""Eager steps on batches of one shape before recording, which compile the kernels for that shape
and create all state."""


def unsupported_reason(device: torch.device) -> str | None:
    """Return why a training step on ``device`` cannot be a CUDA graph, or None if it can."""
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, this is {device}"
    if distributed.world_size() > 1:
        # NCCL notices a dead rank only outside of graphs: inside one, the others would wait for it.
        # docs/distributed.md has more reasons.
        return f"it needs a single rank, this run has {distributed.world_size()}"
    return None


class StepGraph:
    """Runs a training step eagerly a few times, then records it and replays the recording.

    ``step`` takes tensors on the device, updates weights and state in place and returns a tensor,
    without synchronising. If it cannot be recorded, the reason is logged and steps stay eager.
    """

    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self.device = device
        self._step = step
        self._shapes: list[torch.Size] = []
        """Shapes of the last inputs or, once recorded, of the graph's inputs."""
        self._calls = 0
        """Number of consecutive calls with these shapes."""
        self._inputs: list[Tensor] = []
        """Tensors that the graph reads."""
        self._replay: Callable[[], None] | None = None
        self._result = torch.empty(0)
        """Tensor that the graph writes."""
        self._recordable = True

    def __call__(self, *inputs: Tensor | int) -> Tensor:
        """Run one step; ``inputs``: tensors on any device, with the same dtypes in every call.

        Inputs with other shapes than the recorded ones run eagerly.
        """
        shapes = [x.shape for x in inputs if isinstance(x, Tensor)]
        if self._replay is None:
            self._calls = self._calls + 1 if shapes == self._shapes else 1
            self._shapes = shapes
            if self._recordable and self._calls > WARM_UP:
                self._try_to_record(inputs)
        if self._replay is None or shapes != self._shapes:
            return self._run(self._on_device(inputs))
        for buffer, x in zip(self._inputs, inputs, strict=True):
            if not isinstance(x, Tensor):
                buffer.fill_(x)
        pairs = [(b, x) for b, x in zip(self._inputs, inputs, strict=True) if isinstance(x, Tensor)]
        with self._uploads([x for _, x in pairs]) as uploaded:
            for (buffer, _), x in zip(pairs, uploaded, strict=True):
                buffer.copy_(x, non_blocking=True)
        self._replay()
        return self._result.clone()  # the next replay overwrites it

    @property
    def recorded(self) -> bool:
        """Whether the step has been recorded."""
        return self._replay is not None

    def _on_device(self, inputs: Sequence[Tensor | int]) -> list[Tensor]:
        return [
            x.to(self.device, non_blocking=True)
            if isinstance(x, Tensor)
            else torch.full((), x, device=self.device)
            for x in inputs
        ]

    def _run(self, inputs: list[Tensor]) -> Tensor:
        """Run an eager step on the recording stream, since autograd remembers streams."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._step(*inputs)
        current.wait_stream(self._stream)
        return result

    def _try_to_record(self, inputs: Sequence[Tensor | int]) -> None:
        buffers = [x.clone() for x in self._on_device(inputs)]
        try:
            self._replay, self._result = self._record(buffers)
            self._inputs = buffers
        except RuntimeError as error:
            # The context holds the first error: ending a broken recording raises a second one.
            first = error.__context__ or error
            reason = str(first).partition("\n")[0]
            if isinstance(first, torch.OutOfMemoryError):
                # PyTorch may keep the recording's memory (pytorch/pytorch#190348).
                reason += "; --no-cuda-graph needs less memory"
            log.warning("--cuda-graph: running without, %s", reason)
            self._recordable = False

    def _record(self, inputs: list[Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record a step without running it; return the replay function and the result tensor."""
        graph = torch.cuda.CUDAGraph()
        with (
            # After a failed recording the current stream is the recording's: this restores it.
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            # The loader's thread may allocate meanwhile: only this thread's calls are checked.
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = self._step(*inputs)
        return graph.replay, result

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @functools.cached_property
    def _uploads(self) -> Uploads:
        return Uploads(self.device)


class Uploads:
    """Copies batches to a GPU on a separate stream, while the GPU computes the step before.

    Batches go alternately to two sets of buffers, because the graph's inputs are in use until its
    replay ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sets: list[tuple[list[Tensor], torch.cuda.Event]] = []
        """Buffers, and the event after which they may be overwritten."""

    @contextlib.contextmanager
    def __call__(self, batch: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        """Copy a batch of CPU tensors to the GPU, and yield the copies for use in the block.

        A batch that is already on the GPU, or any batch on a machine without one, is yielded
        unchanged. All batches must have the same shapes and dtypes.
        """
        if self._device.type != "cuda" or not all(x.is_cpu for x in batch):
            yield batch
            return
        current = torch.cuda.current_stream(self._device)
        if len(self._sets) < 2:
            self._sets.insert(
                0, ([torch.empty_like(x, device=self._device) for x in batch], torch.cuda.Event())
            )
            self._sets[0][1].record(current)  # earlier kernels may still use the memory
        buffers, is_free = self._sets.pop(0)
        self._stream.wait_event(is_free)
        with torch.cuda.stream(self._stream):
            for buffer, x in zip(buffers, batch, strict=True):
                buffer.copy_(x, non_blocking=True)
        current.wait_stream(self._stream)
        yield buffers
        is_free.record(current)
        self._sets.append((buffers, is_free))

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)
