"""Every kernel compiles for four generations of chips, to the machine code that it was written for.

One shape of each kernel; ``make aot`` compiles all presets' shapes.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from ivcl_fast.config import PRESETS
from ivcl_fast.kernels import _triton, aot_cases

pytestmark = [
    pytest.mark.skipif(_triton.MISSING is not None, reason=str(_triton.MISSING)),
    pytest.mark.skipif(_triton.INTERPRET, reason="interpreting and compiling exclude each other"),
]
if not _triton.MISSING:
    from ivcl_fast.kernels import aot

PRESET = "base64"
NARROW = {"sample_masks"}
"""Ops that read no rows: nothing to load 16 bytes at a time."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[aot.Compiled]]:
    """Every kernel at the first shape of the preset's step, for every chip."""
    first: dict = {}
    for name, launch in aot.recorded(PRESET).items():
        first.setdefault(launch.kernel, (name, launch))
    names, launches = zip(*first.values(), strict=True)
    return dict(zip(names, aot.compile_all(launches), strict=True))


def each(compiled):
    for name, row in compiled.items():
        for built in row:
            yield f"{name} on sm_{built.arch}", built


def test_no_spills_and_no_stack(compiled):
    for what, built in each(compiled):
        assert (built.spills, built.stack) == (0, 0), what


def test_shared_memory_fits_the_chip(compiled):
    for what, built in each(compiled):
        assert built.shared <= aot.CHIPS[built.arch].block_shared, what
        assert 0 < built.occupancy <= 1, what


def test_dots_use_the_tensor_cores(compiled):
    with_dots = set()
    for what, built in each(compiled):
        if built.dots:
            with_dots.add(what.split(",")[0])
            assert built.mma.get(aot.CHIPS[built.arch].dot, 0) > 0, f"{what}: {built.mma}"
    assert with_dots == {"short_attention", "embed_patches"}


def test_rows_are_loaded_16_bytes_at_a_time(compiled):
    for what, built in each(compiled):
        if what.split(",")[0] not in NARROW:
            assert built.wide_loads > 0, f"{what}: none of {built.loads} loads"


def test_every_kernel_of_every_op_is_covered(compiled):
    """A kernel that no case starts would be compiled for the first time on a user's machine."""
    started = {launch.kernel for launch in aot.recorded(PRESET).values()}
    assert len(started) == len(compiled)
    kernels = {
        kernel
        for name in aot_cases.OPS
        for key, kernel in vars(aot_cases._op(name)).items()
        if key.endswith("_kernel") and inspect.getmodule(kernel.fn) is aot_cases._op(name)
    }
    assert kernels == started


def test_every_registered_op_has_a_case():
    registered = {
        name.removeprefix("ivcl_fast::").removesuffix("_backward")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("ivcl_fast::")
    }
    assert registered == set(aot_cases.OPS) | {"layer_norm"}


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
