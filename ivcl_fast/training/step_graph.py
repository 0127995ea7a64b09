"""A whole training step as one CUDA graph: recorded once, then started by a single call.

A step starts more than a thousand kernels. One by one that takes the host 5 ms and more, as long as
a GPU needs for a small batch; a graph starts them all at once. It does the same to the same memory
every time, so what changes between steps has to be in tensors that stay where they are: the batch,
the number of the step and the learning rate. Weights, gradients and the optimisers' state stay
anyway.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ivcl_fast.distributed import group as distributed

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps on batches of one shape before the recording: kernels are compiled and tuned for it, and
all state is made."""


def unsupported_reason(device: torch.device) -> str | None:
    """Why training there cannot run as a graph, or None."""
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, this is {device}"
    if distributed.world_size() > 1:
        return f"it is for one GPU, these are {distributed.world_size()} ranks"
    return None


class StepGraph:
    """A training step that is run as it is a few times, then recorded and replayed.

    ``step`` takes tensors on the device, changes weights and state in place and returns a tensor.
    It may not wait for the device nor use memory from outside that moves, nor leave anything behind
    where it is broken off. Every call is one whole step, so nothing is learnt twice or left out.

    Where a step cannot be recorded, one line in the log says why, and steps run as they are.
    """

    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self.device = device
        self._step = step
        self._shapes: list[torch.Size] = []
        """Of the inputs, as they were last; of the graph: as it takes them."""
        self._calls = 0
        """With these shapes, in a row."""
        self._inputs: list[Tensor] = []
        """What the graph reads."""
        self._replay: Callable[[], None] | None = None
        self._result = torch.empty(0)
        """What the graph writes."""
        self._recordable = True

    def __call__(self, *inputs: Tensor | int) -> Tensor:
        """One step; tensors of any device, of the same dtypes in every call.

        Those of other shapes than were recorded run as they are.
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
            if isinstance(x, Tensor):
                buffer.copy_(x, non_blocking=True)
            else:
                buffer.fill_(x)
        self._replay()
        return self._result.clone()  # the next step writes over it

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed by now."""
        return self._replay is not None

    def _on_device(self, inputs: Sequence[Tensor | int]) -> list[Tensor]:
        return [
            x.to(self.device, non_blocking=True)
            if isinstance(x, Tensor)
            else torch.full((), x, device=self.device)
            for x in inputs
        ]

    def _run(self, inputs: list[Tensor]) -> Tensor:
        """The step as it is, on the stream that will record it: autograd keeps to one stream."""
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
            # What failed first: ending the recording then fails as well, and says only that.
            reason = str(error.__context__ or error).partition("\n")[0]
            log.warning("--cuda-graph: running without, %s", reason)
            self._recordable = False

    def _record(self, inputs: list[Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What starts the recorded step, and where it leaves its result; runs nothing."""
        graph = torch.cuda.CUDAGraph()
        with (
            # A recording that fails stays on its stream; this goes back.
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            # The loader's thread goes on taking memory: only this thread's calls are checked.
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = self._step(*inputs)
        return graph.replay, result

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)
