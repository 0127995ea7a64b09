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
from collections.abc import Callable

import torch
from torch import Tensor

from . import distributed

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps before the recording: kernels are compiled and tuned, and all state is made."""


def obstacle(device: torch.device) -> str | None:
    """Why training there cannot run as a graph, or None."""
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, this is {device}"
    if distributed.world_size() > 1:
        return f"it is for one GPU, these are {distributed.world_size()} ranks"
    return None


class StepGraph:
    """A training step that is run as it is a few times, then recorded and replayed.

    ``step`` takes tensors on the device, changes weights and state in place and returns a tensor.
    It may not wait for the device nor use memory from outside that moves. Every call is one whole
    step, so nothing is learnt twice or left out.

    Where a step cannot be recorded, one line in the log says why, and steps run as they are.
    """

    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self.device = device
        self._step = step
        self._inputs: list[Tensor] = []
        """What ``step`` is called with; of the graph: what it reads."""
        self._calls = 0
        self._replay: Callable[[], None] | None = None
        self._result = torch.empty(0)
        """What the graph writes."""
        self._recordable = True

    def __call__(self, *inputs: Tensor | int) -> Tensor:
        """One step; tensors of any device, of the same shapes and dtypes in every call.

        Raises ``ValueError`` for another shape.
        """
        self._fill(inputs)
        self._calls += 1
        if self._recordable and self._calls > WARM_UP and self._replay is None:
            try:
                self._replay, self._result = self._record()
            except RuntimeError as error:
                log.warning("--cuda-graph: running without, %s", str(error).partition("\n")[0])
                self._recordable = False
        if self._replay is None:
            return self._run()
        self._replay()
        return self._result.clone()  # the next step writes over it

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed by now."""
        return self._replay is not None

    def _fill(self, inputs: tuple[Tensor | int, ...]) -> None:
        if not self._inputs:
            self._inputs = [
                torch.empty_like(x, device=self.device)
                if isinstance(x, Tensor)
                else torch.empty((), dtype=torch.int64, device=self.device)
                for x in inputs
            ]
        for buffer, x in zip(self._inputs, inputs, strict=True):
            if not isinstance(x, Tensor):
                buffer.fill_(x)
            elif x.shape == buffer.shape:
                buffer.copy_(x, non_blocking=True)
            else:
                shapes = list(x.shape), list(buffer.shape)
                raise ValueError("inputs: shape {} is not {}, as recorded".format(*shapes))

    def _run(self) -> Tensor:
        """The step as it is, on the stream that will record it: autograd keeps to one stream."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._step(*self._inputs)
        current.wait_stream(self._stream)
        return result

    def _record(self) -> tuple[Callable[[], None], Tensor]:
        """What starts the recorded step, and where it leaves its result; runs nothing."""
        graph = torch.cuda.CUDAGraph()
        # The feed's thread goes on taking memory meanwhile: only this thread's calls are checked.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = self._step(*self._inputs)
        return graph.replay, result

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)
