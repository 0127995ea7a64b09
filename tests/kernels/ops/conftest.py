"""Op tests run on every device, and test the implementation that serves it.

On a CPU that is C++ where it is built, else PyTorch, and under ``TRITON_INTERPRET=1`` the Triton
kernels in the interpreter (``tests/kernels/test_implementations.py`` runs the tests so). On a GPU
it is the compiled Triton kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from ivcl_fast.kernels import _ext, _triton

INTERPRET = _triton.INTERPRET


def implementation(device: str) -> str | None:
    """The implementation that public functions call on a device; None: ``_ref`` directly."""
    if device == "cuda" or INTERPRET:
        return "triton"
    return "cpp" if _ext.ISA else None


needs_cpp = pytest.mark.skipif(implementation("cpu") != "cpp", reason="no C++ ops here")


def check_threads(run: Callable[[], list[torch.Tensor]]) -> None:
    """Check that ``run`` gives the same bits for any number of threads."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


# The C++ ops do not take float16, and the interpreter computes bfloat16 wrongly (on raw bits).
HALF = torch.bfloat16 if implementation("cpu") == "cpp" else torch.float16
"""The 16-bit dtype that every implementation here takes."""
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRET else [torch.bfloat16])


# At its first use as a context, ``torch.device`` lists the tensor constructors. That must not
# happen while ``poisoned`` has replaced some of them.
with torch.device("cpu"):
    torch.empty(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out float16 on a CPU with C++ ops, which do not take it."""

    def runs(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        parameters: set[str] = (
            set() if callspec is None else {str(v) for v in callspec.params.values()}
        )
        return implementation("cpu") != "cpp" or not {"torch.float16", "cpu"} <= parameters

    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = filter(runs, items)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill fresh memory with NaN (or a large id), so that an element never written is noticed."""
    for name in ("empty", "empty_like", "empty_strided"):
        plain = getattr(torch, name)

        def fill(*args, _plain=plain, **kwargs):
            out = _plain(*args, **kwargs)
            if out.device.type == "meta" or torch.compiler.is_compiling():
                return out
            return out.fill_(float("nan") if out.is_floating_point() else 113)

        monkeypatch.setattr(torch, name, fill)
    torch.manual_seed(0)
    # Fills the memory that C++ allocates. Ops that are not deterministic only warn.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
