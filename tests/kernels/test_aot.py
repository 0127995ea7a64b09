"""Every kernel compiles for four generations of chips, to the machine code that it was written for.

One shape of each kernel; ``make aot`` compiles all presets' shapes.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from ivcl_fast.config import PRESETS
from ivcl_fast.kernels import _triton, aot_cases
from ivcl_fast.kernels.launch import Launch

pytestmark = [
    pytest.mark.skipif(_triton.MISSING is not None, reason=str(_triton.MISSING)),
    pytest.mark.skipif(_triton.INTERPRET, reason="interpreting and compiling exclude each other"),
]
if not _triton.MISSING:
    from ivcl_fast.kernels import aot

PRESET = "base64"


@pytest.fixture(scope="module")
def first_shapes() -> dict[str, Launch]:
    """Every kernel at the first shape of the preset's step."""
    first: dict = {}
    for name, launch in aot.recorded(PRESET).items():
        first.setdefault(launch.kernel, (name, launch))
    return dict(first.values())


@pytest.fixture(scope="module")
def compiled(first_shapes) -> list[tuple[str, Launch, aot.Compiled]]:
    rows = aot.compile_all(first_shapes.values())
    return [
        (f"{name}, sm_{built.arch}", launch, built)
        for (name, launch), row in zip(first_shapes.items(), rows, strict=True)
        for built in row
    ]


def test_no_faults(compiled):
    """No spill or stack, shared memory that fits, tensor cores for dots, 16-byte loads."""
    found = {what: aot.faults(launch, built) for what, launch, built in compiled}
    assert {what: fault for what, fault in found.items() if fault} == {}


def test_what_is_read_is_plausible(compiled):
    """So that a tool whose output is no longer understood does not pass for a clean bill."""
    for what, _, built in compiled:
        assert 16 <= built.registers <= 255 and built.loads >= 1 and 0 < built.occupancy <= 1, what
    with_dots = {what.split(",")[0] for what, _, built in compiled if built.dots}
    assert with_dots == {"short_attention", "embed_patches"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(spills=2), "spills"),
        (dict(stack=8), "spills"),
        (dict(shared=228 << 10), "shared memory"),
        (dict(mma={"HMMA": 4}), "dots"),
        (dict(mma={}), "dots"),
        (dict(wide_loads=0), "loads"),
    ],
)
def test_faults_are_found(change, word, first_shapes):
    launch = next(iter(first_shapes.values()))
    good = aot.Compiled(90, 4, 64, 0, 0, 4096, 2, {"HGMMA": 4}, 8, 8)
    assert aot.faults(launch, good) == []
    (fault,) = aot.faults(launch, dataclasses.replace(good, **change))
    assert fault.startswith(word)


def test_occupancy():
    """Against NVIDIA's occupancy calculator, by hand."""

    def occupancy(arch, registers, shared, warps=4):
        return aot.Compiled(arch, warps, registers, 0, 0, shared, 0, {}, 1, 1).occupancy

    assert occupancy(90, 32, 0) == 1.0
    assert occupancy(90, 128, 0) == 4 * 4 / 64  # 65,536 / (128 * 128) blocks of four warps
    assert occupancy(80, 32, 40 << 10) == 4 * 4 / 64  # 164 / 41 KB
    assert occupancy(120, 40, 0) == 1.0  # 12 blocks of 5,120 registers fill its 48 warps


def test_every_kernel_of_every_op_is_covered(first_shapes):
    """A kernel that no case starts would be compiled for the first time on a user's machine."""
    started = {launch.kernel for launch in first_shapes.values()}
    kernels = {
        kernel
        for name in aot_cases.OPS
        for key, kernel in vars(aot_cases._op(name)).items()
        if key.endswith("_kernel") and inspect.getmodule(kernel.fn) is aot_cases._op(name)
    }
    assert kernels == started


def test_every_registered_op_has_a_case():
    only_cpp = {"linear_gradients"}  # on a GPU these are the library's products
    registered = {
        name.removeprefix("ivcl_fast::").removesuffix("_backward")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("ivcl_fast::")
    }
    assert registered - only_cpp == set(aot_cases.OPS) | {"layer_norm"}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recorded_without_memory(preset):
    names = {name.split(",")[0].split(" ")[0] for name in aot.recorded(preset)}
    assert names == set(aot_cases.OPS) | {"layer_norm"}


def test_document_keeps_what_stands_around_the_table(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text(f"# Title\n{aot.BEGIN}\nold\n{aot.END}\nafter\n")
    aot.write_between_markers(document, "new")
    assert document.read_text() == f"# Title\n{aot.BEGIN}\nnew\n{aot.END}\nafter\n"
    document.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        aot.write_between_markers(document, "new")
