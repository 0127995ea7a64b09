"""An exact check of every address that interpreted Triton kernels load from or store to.

The interpreter computes the address of each element that a program reads or writes.
:func:`checked_launches` looks at all of them: an address outside the kernel's tensors is an error,
and so is an element that two programs store, or an element of an output that none stores.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from triton.runtime import interpreter

from ivcl_fast.info import OPS
from ivcl_fast.kernels.launch import Launch, record
from ivcl_fast.kernels.launch import launch as run_launch

GUARD = 4096
"""Elements before and after a tensor that belong to no tensor."""


class Access:
    """The tensors of one launch, and how often each of their elements has been stored."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = [_guarded(a) if isinstance(a, Tensor) else a for a in args]
        tensors = [a for a in self.args if isinstance(a, Tensor) and a.numel()]
        self.tensors = sorted(tensors, key=Tensor.data_ptr)
        self.starts = np.array([t.data_ptr() for t in self.tensors], dtype=np.uint64)
        self.stored = [np.zeros(t.numel(), dtype=np.int32) for t in self.tensors]

    def check(self, what: str, pointers: np.ndarray, mask: np.ndarray) -> None:
        """Raise ``AssertionError`` if an address is not one of an element."""
        pointers = np.broadcast_to(pointers, mask.shape)[mask].ravel()
        if not pointers.size:
            return
        which = np.searchsorted(self.starts, pointers, side="right") - 1
        assert which.min() >= 0, f"{what} before the first tensor"
        for number in np.unique(which):
            tensor = self.tensors[number]
            offsets = (pointers[which == number] - self.starts[number]).astype(np.int64)
            element, rest = np.divmod(offsets, tensor.element_size())
            assert not rest.any(), f"{what} between two elements"
            beyond = int(element.max()) - tensor.numel() + 1
            assert beyond <= 0, f"{what} {beyond} elements beyond a tensor of {tensor.numel()}"
            if what == "store":
                np.add.at(self.stored[number], element, 1)

    def check_stores(self) -> set[int]:
        """Check that what is stored is stored once and whole; the positions of these arguments."""
        outputs = set()
        for tensor, stored in zip(self.tensors, self.stored, strict=True):
            if stored.any():
                counts = Counter(stored.tolist())
                assert set(counts) == {1}, f"elements by number of stores: {dict(counts)}"
                outputs |= {i for i, arg in enumerate(self.args) if arg is tensor}
        return outputs


def _guarded(tensor: Tensor) -> Tensor:
    """A copy of a contiguous tensor with nothing else near it."""
    room = tensor.new_empty(tensor.numel() + 2 * GUARD)
    return room[GUARD : GUARD + tensor.numel()].view(tensor.shape).copy_(tensor)


@contextlib.contextmanager
def checked_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """Check all launches of the ops inside; returns those that there were."""
    current: list[Access] = []
    builder, done = interpreter.interpreter_builder, []

    def checking(name: str, what: str, mask_at: int) -> Any:
        plain = getattr(builder, name)

        def run(pointers: Any, *args: Any) -> Any:
            if current:
                current[0].check(what, pointers.data, args[mask_at].data)
            return plain(pointers, *args)

        return run

    # Unmasked loads and stores call the masked ones.
    monkeypatch.setattr(builder, "create_masked_load", checking("create_masked_load", "load", 0))
    monkeypatch.setattr(builder, "create_masked_store", checking("create_masked_store", "store", 1))

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        with record() as recorded:
            run_launch(kernel, grid, *args, **options)
        access = Access(args)
        current.append(access)
        run_launch(kernel, grid, *access.args, **options)
        current.clear()
        outputs = access.check_stores()
        assert outputs or not np.prod(grid), f"{kernel.__name__} stores nothing"
        for i in outputs:
            args[i].copy_(access.args[i])
        done.append(recorded[0])

    for name in OPS:
        op = importlib.import_module(f"ivcl_fast.kernels.{name}")
        if hasattr(op, "launch"):  # RMSNorm's are in LayerNorm's file
            monkeypatch.setattr(op, "launch", launch)
    yield done
