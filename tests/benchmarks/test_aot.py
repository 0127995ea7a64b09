"""The ahead-of-time gate: every kernel compiles without faults, and each kind of fault is found.

`make aot` compiles all shapes of all presets with all supported Tritons; here each kernel is
compiled once, at one shape and for one chip.
"""

from __future__ import annotations

import importlib
import itertools

import pytest

from ivcl_fast.info import OPS
from ivcl_fast.kernels import _triton

pytestmark = [
    pytest.mark.skipif(_triton.MISSING is not None, reason=str(_triton.MISSING)),
    pytest.mark.skipif(_triton.INTERPRET, reason="interpreting and compiling exclude each other"),
]
if not _triton.MISSING:
    from benchmarks.aot import __main__ as aot
    from benchmarks.aot import compile as aot_compile

CHIPS = (80, 90, 100, 120)
"""What is compiled here: the code for other chips differs from theirs in its limits."""


@pytest.fixture(scope="module")
def first_shapes() -> list[aot.Build]:
    """Every kernel at the first shape of a step of ``base64``, for every chip."""
    first: dict = {}
    for chip in CHIPS:
        for build in aot.builds({"base64": aot.settings()["base64"]}, ["bf16"], chip):
            first.setdefault((build.launch.kernel, chip), build)
    return [*first.values()]


def test_no_kernel_has_faults(first_shapes):
    """Each for the next chip; if the output of a tool changed, no figure might be found."""
    kernels = list(dict.fromkeys(build.launch.kernel for build in first_shapes))
    chips = dict(zip(kernels, itertools.cycle(CHIPS), strict=False))
    wanted = [build for build in first_shapes if build.arch == chips[build.launch.kernel]]
    with_dots = set()
    for build, built in aot.compile_all(wanted):
        assert aot_compile.faults(build.launch, built) == [], build.name
        assert 16 <= built.registers <= 255 and 1 <= built.store_bytes <= 16, build.name
        assert built.warps.bit_count() == 1, build.name  # Triton refuses others only on a GPU
        if built.dots:
            with_dots.add(build.op)
    assert with_dots == {"short_attention", "embed_patches"}


GOOD = dict(
    arch=90, warps=4, registers=64, stack=0, spills=0, shared=4096, dots={"bf16": 2},
    mma={"wgmma": 4}, store_bytes=16, hazards=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(spills=2), "spills"), (dict(stack=8), "spills"),
        (dict(shared=228 << 10), "shared memory"), (dict(mma={"mma": 4}), "dots"),
        (dict(mma={}), "dots"), (dict(dots={"f32": 2}), "dots"), (dict(hazards=3), "hazards"),
        (dict(registers=96), "grid"),
    ],
)  # fmt: skip
def test_faults_are_found(change, word, first_shapes):
    launch = next(
        build.launch
        for build in first_shapes
        if build.name.startswith("bias_gelu, encoder backward") and build.arch == 90
    )
    assert aot_compile.faults(launch, aot_compile.Compiled(**GOOD)) == []
    found = aot_compile.faults(launch, aot_compile.Compiled(**{**GOOD, **change}))
    assert any(fault.startswith(word) for fault in found)


LOOP = """
/*0100*/ LDS.64 R20, [R8] ;
/*0110*/ HGMMA.64x64x16.F32.BF16 R24, R16, gdesc[UR4], R24 ;
/*0120*/ HGMMA.64x64x16.F32.BF16 R24, R20, gdesc[UR8], R24, gsb0 ;
/*0130*/ WARPGROUP.DEPBAR.LE gsb0, {left} ;
/*0140*/ I2FP.F32.U32 R18, R6 ;
/*0150*/ @!P1 BRA 0x100 ;
/*0160*/ EXIT ;
"""


def test_hazards_are_counted_until_a_wait_covers_the_read():
    """R18, then R20 and R21 in the next turn, are written while the one group may still run."""
    assert aot_compile.count_hazards(LOOP.format(left="0x0")) == 0
    assert aot_compile.count_hazards(LOOP.format(left="0x1")) == 2


def test_every_kernel_of_every_op_is_covered(first_shapes):
    """A kernel that no case starts would first be compiled on a user's machine."""
    started = {build.launch.kernel for build in first_shapes}
    kernels = {
        kernel
        for name in OPS
        for key, kernel in vars(importlib.import_module(f"ivcl_fast.kernels.{name}")).items()
        if key.endswith("_kernel") and hasattr(kernel, "fn")  # decorated by triton.jit
    }
    assert kernels == started
