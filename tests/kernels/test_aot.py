"""Every kernel compiles without faults for four generations of chips.

One shape of each kernel is tested; ``make aot`` compiles the shapes of all presets.
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
    for name, launch in aot.record_launches(PRESET).items():
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


def test_figures_are_plausible(compiled):
    """If the output of a tool changed, no figure might be found, and so no fault."""
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
    """The values are those of NVIDIA's occupancy calculator."""

    def occupancy(arch, registers, shared, warps=4):
        return aot.Compiled(arch, warps, registers, 0, 0, shared, 0, {}, 1, 1).occupancy

    assert occupancy(90, 32, 0) == 1.0
    assert occupancy(90, 128, 0) == 4 * 4 / 64  # 65,536 / (128 * 128) blocks of four warps
    assert occupancy(80, 32, 40 << 10) == 4 * 4 / 64  # 164 / 41 KB
    assert occupancy(120, 40, 0) == 1.0  # 12 blocks of 5,120 registers fill its 48 warps


def test_every_kernel_of_every_op_is_covered(first_shapes):
    """A kernel that no case starts would first be compiled on a user's machine."""
    started = {launch.kernel for launch in first_shapes.values()}
    kernels = {
        kernel
        for name in aot_cases.OPS
        for key, kernel in vars(aot_cases._op(name)).items()
        if key.endswith("_kernel")
        and hasattr(kernel, "fn")  # decorated by triton.jit
        and inspect.getmodule(kernel.fn) is aot_cases._op(name)
    }
    assert kernels == started


def test_every_registered_op_has_a_case():
    only_cpp = {"linear_gradients"}  # on a GPU, PyTorch's libraries compute these
    registered = {
        name.removeprefix("ivcl_fast::").removesuffix("_backward")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("ivcl_fast::")
    }
    assert registered - only_cpp == set(aot_cases.OPS) | {"layer_norm"}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recorded_without_memory(preset):
    names = {name.split(",")[0].split(" ")[0] for name in aot.record_launches(preset)}
    assert names == set(aot_cases.OPS) | {"layer_norm"}


def test_summary_and_table():
    forward = aot.Compiled(80, 4, 64, 0, 2, 4096, 2, {"HMMA": 4}, 8, 8)
    backward = dataclasses.replace(forward, arch=90, registers=128, spills=0, mma={"HGMMA": 2})
    kernels = {"bias_gelu, encoder forward": [forward, backward]}
    assert aot.table(kernels).splitlines()[2:] == [
        "| bias_gelu, encoder forward | 64 / 128 | 4 | 4096 | 2 / 0 | 4 HMMA / 2 HGMMA | 8 | 8 "
        "| 50% / 25% |"
    ]
    assert aot.summary({"tiny": kernels, "small": kernels}).splitlines()[2:] == [
        "| `bias_gelu` | 4 | 64 to 128 | 4 | 4 KiB | 25 to 50 % |"
    ]


def test_text_around_the_summary_is_kept(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text(f"# Title\n{aot.BEGIN}\nold\n{aot.END}\nafter\n")
    aot.write_between_markers(document, "new")
    assert document.read_text() == f"# Title\n{aot.BEGIN}\nnew\n{aot.END}\nafter\n"
    document.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        aot.write_between_markers(document, "new")
