"""Every kernel compiles without faults for six chips, by the oldest and the newest Triton.

``make aot`` compiles all shapes of all presets and keeps the figures. Here they are checked against
the kernels as they are now, and one shape of each kernel is compiled again, for one chip.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivcl_fast.config import PRESETS
from ivcl_fast.info import OPS
from ivcl_fast.kernels import _triton
from ivcl_fast.kernels.launch import Launch, record

pytestmark = [
    pytest.mark.skipif(_triton.MISSING is not None, reason=str(_triton.MISSING)),
    pytest.mark.skipif(_triton.INTERPRET, reason="interpreting and compiling exclude each other"),
]
if not _triton.MISSING:
    from ivcl_fast.kernels import short_attention
    from ivcl_fast.kernels.aot import builds as aot
    from ivcl_fast.kernels.aot import compile as aot_compile
    from ivcl_fast.kernels.aot import report as aot_report
    from ivcl_fast.kernels.aot.__main__ import OLDEST_FOLDER

PRESET = "base64"


ROOT = Path(__file__).parents[2]
CHIPS = (80, 90, 100, 120)
"""What is compiled here: the code for sm_86 and sm_89 differs from sm_80's in its limits."""


@pytest.fixture(scope="module")
def first_shapes() -> dict[str, aot.Build]:
    """Every kernel at the first shape of the preset's step, for every chip."""
    config = {PRESET: aot.settings()[PRESET]}
    first: dict = {}
    for build in aot.builds(dtypes=["bf16"], archs=CHIPS, configs=config):
        first.setdefault((build.launch.kernel, build.arch), build)
    return {f"{build.name}, sm_{build.arch}": build for build in first.values()}


@pytest.fixture(scope="module")
def compiled(first_shapes) -> dict[str, tuple[aot.Build, aot_compile.Compiled]]:
    """Every kernel, each for the next chip."""
    kernels = list(dict.fromkeys(build.launch.kernel for build in first_shapes.values()))
    chips = dict(zip(kernels, itertools.cycle(CHIPS), strict=False))
    wanted = {k: b for k, b in first_shapes.items() if b.arch == chips[b.launch.kernel]}
    return dict(zip(wanted, aot.compile_all(wanted.values()), strict=True))


@pytest.fixture(scope="module")
def kept() -> aot.Figures:
    return json.loads((ROOT / aot.RESULTS).read_text())


def test_no_faults(compiled):
    """No spill or stack, shared memory that fits, tensor cores for dots, 16-byte loads."""
    found = {what: aot_compile.faults(b.launch, built) for what, (b, built) in compiled.items()}
    assert {what: fault for what, fault in found.items() if fault} == {}


def test_figures_are_plausible(compiled):
    """If the output of a tool changed, no figure might be found, and so no fault."""
    for what, (_, built) in compiled.items():
        assert 16 <= built.registers <= 255 and built.loads >= 1 and 0 < built.occupancy <= 1, what
        assert 30 < built.instructions < 9000, what
    with_dots = {what.split(",")[0] for what, (_, built) in compiled.items() if built.dots}
    assert with_dots == {"short_attention", "embed_patches"}


def test_kept_figures_are_those_of_the_machine_code(compiled, kept):
    """Where the installed Triton is one of those whose figures are kept."""
    version = aot.triton.__version__
    for what, (build, built) in compiled.items():
        assert aot.compiled_figures(kept, build, version) == built or version not in kept, what


def test_kept_figures_have_no_faults(kept):
    """Six chips, two Tritons, float32 and bfloat16, all presets, pretraining and finetuning."""
    assert len(kept) == 2 and min(kept).startswith("3.6.")
    assert aot.all_faults(kept) == [], "`make aot` compiles what has changed"


def old_float32_backward(arch: int) -> Launch:
    """The backward of 68 tokens as it was: all pairs of tokens at once, also in float32."""
    qkv, dout = torch.empty(4, 68, 3 * 768, device="meta"), torch.empty(4, 68, 768, device="meta")
    sizes = dict(TOKENS=68, HEADS=12, HEAD_DIM=64, SCALE=0.125, DROP_STEPS=0, TILE=128, CHUNK=16)
    with record(arch) as launches:
        op = sys.modules[short_attention.__module__]
        op.launch(
            op._backward_kernel, (48,), None, dout, qkv, torch.empty_like(qkv), 4 * 68,
            num_warps=16, num_stages=1, OPERAND=_triton.tl.float32, **sizes,
        )  # fmt: skip
    return launches[0]


def test_the_old_float32_attention_fails():
    launch = old_float32_backward(86)
    (fault,) = aot_compile.faults(launch, aot_compile.compile_launch(launch, 86))
    assert fault.startswith("spills")


def test_the_old_float32_attention_fails_with_the_oldest_triton():
    """It asked for more shared memory than the chip has, so the first backward was an error."""
    oldest = ROOT / OLDEST_FOLDER
    if not oldest.is_dir():
        pytest.skip(f"no {OLDEST_FOLDER}; `make aot` installs the oldest supported Triton")
    code = (
        "from tests.kernels.test_aot import aot_compile, old_float32_backward as old;"
        "print(aot_compile.faults(old(86), aot_compile.compile_launch(old(86), 86)))"
    )
    path = os.pathsep.join(map(str, [oldest, ROOT, *sys.path]))
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "shared memory: 139264 bytes, the chip has 101376" in run.stdout


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(spills=2), "spills"),
        (dict(stack=8), "spills"),
        (dict(shared=228 << 10), "shared memory"),
        (dict(mma={"HMMA": 4}), "dots"),
        (dict(mma={}), "dots"),
        (dict(dots={"f32": 2}), "dots"),
        (dict(wide_loads=0), "loads"),
        (dict(registers=96), "grid"),
        (dict(warps=2, shared=30 << 10), "occupancy"),
        (dict(instructions=600), "instructions"),
    ],
)
def test_faults_are_found(change, word, first_shapes):
    launch = first_shapes["bias_gelu, encoder backward, sm_90"].launch
    good = aot_compile.Compiled(
        90, 4, 64, 0, 0, 4096, {"bf16": 2}, {"HGMMA": 4}, 8, 8, instructions=500
    )
    assert aot_compile.faults(launch, good) == []
    found = aot_compile.faults(launch, dataclasses.replace(good, **change))
    assert any(fault.startswith(word) for fault in found)


def test_every_reason_for_a_low_occupancy_is_needed_and_holds_no_further(kept):
    lowest = dict.fromkeys(aot_compile.LOW_OCCUPANCY, 1.0)
    for version in kept:
        for build in aot.builds(version, archs=[90]):
            op = build.launch.kernel.fn.__module__.rpartition(".")[2]
            key = op, build.launch.kernel.__name__
            for found in (key, (*key, {"fp32": "fp32", "bf16": "16-bit"}[build.dtype])):
                if found in lowest:
                    filled = aot.compiled_figures(kept, build, version).occupancy
                    lowest[found] = min(lowest[found], filled)
    assert lowest == {key: least for key, (least, _) in aot_compile.LOW_OCCUPANCY.items()}


def test_occupancy():
    """The values are those of NVIDIA's occupancy calculator."""

    def occupancy(arch, registers, shared, warps=4):
        built = aot_compile.Compiled(arch, warps, registers, 0, 0, shared, {}, {}, 1, 1, 100)
        return built.occupancy

    assert occupancy(90, 32, 0) == 1.0
    assert occupancy(90, 128, 0) == 4 * 4 / 64  # 65,536 / (128 * 128) blocks of four warps
    assert occupancy(80, 32, 40 << 10) == 4 * 4 / 64  # 164 / 41 KB
    assert occupancy(120, 40, 0) == 1.0  # 12 blocks of 5,120 registers fill its 48 warps
    assert occupancy(86, 32, 0, warps=2) == 2 * 16 / 48  # 16 blocks at most


def test_a_digest_changes_with_what_is_compiled(first_shapes):
    launch = first_shapes["bias_gelu, encoder backward, sm_90"].launch
    x, *others = launch.args
    changes = [
        dict(args=(x.half(), *others)),
        dict(args=(*launch.args[:-1], 769)),
        dict(constexprs={**launch.constexprs, "BLOCK_ROWS": 8}),
        dict(num_warps=8), dict(maxnreg=64),
        dict(kernel=first_shapes["bias_gelu, encoder forward, sm_90"].launch.kernel),
    ]  # fmt: skip
    digests = {aot_compile.digest(dataclasses.replace(launch, **change)) for change in changes}
    assert len(digests | {aot_compile.digest(launch)}) == 1 + len(changes)
    assert "def _normal(" in aot_compile._source(launch.kernel)  # what it calls is compiled too


def test_every_kernel_of_every_op_is_covered(first_shapes):
    """A kernel that no case starts would first be compiled on a user's machine."""
    started = {build.launch.kernel for build in first_shapes.values()}
    kernels = {
        kernel
        for name in OPS
        for key, kernel in vars(importlib.import_module(f"ivcl_fast.kernels.{name}")).items()
        if key.endswith("_kernel") and hasattr(kernel, "fn")  # decorated by triton.jit
    }
    assert kernels == started


def test_every_registered_op_has_a_case():
    only_cpp = {"linear_gradients"}  # on a GPU, PyTorch's libraries compute these
    registered = {
        name.removeprefix("ivcl_fast::").removesuffix("_backward")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("ivcl_fast::")
    }
    in_files_of_others = {"layer_norm", "add_layer_norm_biased", "rms_norm", "hash_seeds"}
    assert registered - only_cpp == set(OPS) | in_files_of_others


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recorded_without_memory(preset):
    config = {preset: aot.settings()[preset]}
    names = {build.name.split(",")[0].split()[0] for build in aot.builds(configs=config)}
    assert names == set(OPS) | {"layer_norm", "rms_norm", "hash_seeds"}


def test_figures_are_kept_and_completed(tmp_path, monkeypatch, first_shapes):
    """What is kept is not compiled again, and what no launch needs any more is dropped."""
    build = first_shapes["bias_gelu, encoder backward, sm_90"]
    monkeypatch.setattr(aot, "RESULTS", tmp_path / "aot.json")
    monkeypatch.setattr(aot, "builds", lambda *_: iter([build]))
    monkeypatch.setattr(aot.triton, "__version__", "9.9")
    assert aot.read_figures() == {} and aot.all_faults({"9.9": {}})[0].endswith("not compiled")
    good = aot_compile.Compiled(90, 4, 64, 0, 0, 4096, {}, {}, 8, 8, 500)
    monkeypatch.setattr(aot, "compile_all", lambda wanted: ((b, good) for b in wanted))
    aot.write_figures({"9.9": {"outdated": {}}, "3.6": {"other": {}}})
    aot.compile_missing()
    figures = aot.read_figures()
    assert {v: [*launches] for v, launches in figures.items()} == {
        "3.6": ["other"], "9.9": [build.digest],
    }  # fmt: skip
    assert aot.compiled_figures(figures, build, "9.9") == good
    assert aot.all_faults({"9.9": figures["9.9"]}) == []
    monkeypatch.setattr(aot, "compile_all", lambda wanted: [][len(wanted) :])
    aot.compile_missing()
    assert aot.read_figures() == figures


def test_figures_of_a_triton_that_was_replaced_are_dropped(tmp_path, monkeypatch):
    """Otherwise they would be faults as soon as a kernel changes."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton-3.6.0.dist-info").mkdir()
    (tmp_path / "triton-3.6.0.dist-info" / "METADATA").write_text("Name: triton\nVersion: 3.6.0\n")
    command = importlib.import_module("ivcl_fast.kernels.aot.__main__")
    monkeypatch.setattr(aot, "RESULTS", tmp_path / "aot.json")
    monkeypatch.setattr(aot, "builds", lambda *_: iter([]))
    monkeypatch.setattr(aot.triton, "__version__", "9.9")
    monkeypatch.setattr(command, "write_report", lambda figures: None)
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: None)  # the oldest Triton's
    monkeypatch.setattr(sys, "argv", ["aot", "--oldest", str(tmp_path)])
    aot.write_figures({"3.6.0": {}, "9.8": {"old": {}}})
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code is None and [*aot.read_figures()] == ["3.6.0", "9.9"]


def test_summary_and_table():
    forward = aot_compile.Compiled(80, 4, 64, 0, 2, 4096, {"bf16": 2}, {"HMMA": 4}, 8, 8, 90)
    backward = dataclasses.replace(forward, arch=90, registers=128, spills=0, mma={"HGMMA": 2})
    kernels = {"bias_gelu, encoder forward": [forward, backward]}
    assert aot_report.table(kernels).splitlines()[2:] == [
        "| bias_gelu, encoder forward | 80, 90 | 64 / 128 | 4 | 4096 | 2 / 0 | 4 HMMA / 2 HGMMA "
        "| 8 | 8 | 90 | 50% / 25% |"
    ]
    assert aot_report.summary([{"tiny": kernels}, {"small": kernels}]).splitlines()[2:] == [
        "| `bias_gelu` | 4 | 64 to 128 | 4 | 4 KiB | 25 to 50 % | 25 to 25 % |"
    ]


def test_text_around_the_summary_is_kept(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text(f"# Title\n{aot_report.BEGIN}\nold\n{aot_report.END}\nafter\n")
    aot_report.write_between_markers(document, "new")
    expected = f"# Title\n{aot_report.BEGIN}\nnew\n{aot_report.END}\nafter\n"
    assert document.read_text() == expected
    document.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        aot_report.write_between_markers(document, "new")
