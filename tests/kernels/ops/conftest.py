"""Op tests run on each device with an implementation of its own.

Without a GPU the CPU implementation is tested, the one in C++ where it is built; under
``TRITON_INTERPRET=1`` the same tests send CPU tensors through the Triton kernels
(``tests/kernels/test_implementations.py`` runs them so, in a process of its own); with a GPU the
compiled Triton kernels are tested as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ivcl_fast.kernels import _ext, _triton

INTERPRET = _triton.INTERPRET


def served(device: str) -> str | None:
    """Which implementation the public functions call on a device; None: they inline ``_ref``."""
    if device == "cuda" or INTERPRET:
        return "triton"
    return "cpp" if _ext.ISA else None


# The interpreter computes bfloat16 wrongly (on raw bits), the CPU reference does not.
HALF = torch.bfloat16 if served("cpu") == "cpp" else torch.float16
"""A half precision that every implementation here takes."""
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRET else [torch.bfloat16])


# ``torch.device`` as a context keeps a list of the constructors it serves from its first use on:
# that must not be while ``poisoned`` has replaced some.
with torch.device("cpu"):
    torch.empty(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def computed(request: pytest.FixtureRequest) -> None:
    """Skips what no implementation takes: float16 on a CPU with C++ ops."""
    given = getattr(request.node, "callspec", None)
    wanted = (
        {"float16", "cpu"} <= {str(v).removeprefix("torch.") for v in given.params.values()}
        if given
        else False
    )
    if wanted and served("cpu") == "cpp":
        pytest.skip("the C++ ops compute with float32 and bfloat16")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds NaN (or a huge id), so that an element left unwritten shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        plain = getattr(torch, name)

        def fill(*args, _plain=plain, **kwargs):
            out = _plain(*args, **kwargs)
            if out.device.type == "meta" or torch.compiler.is_compiling():
                return out
            return out.fill_(float("nan") if out.is_floating_point() else 113)

        monkeypatch.setattr(torch, name, fill)
    torch.manual_seed(0)
    # Fills what C++ allocates; nothing is to be refused that cannot repeat.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
