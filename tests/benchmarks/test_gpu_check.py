"""The check of a card, without one: parts that fail in every way, tiny sizes."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import baselines, steps
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import commands, parts, stages
from benchmarks.gpu_check.__main__ import GROUPS, LIMITS, Part, run
from benchmarks.results import Results, RowFile, Skip, failures_in
from benchmarks.steps import OURS_COMPILED_GRAPH, Variant
from benchmarks.summary import summary
from benchmarks.timing import BF16
from ivcl_fast import IVCL
from ivcl_fast.kernels import _triton, attention
from ivcl_fast.training import step_graph
from tests.support.marks import needs_kernels
from tests.support.processes import ended

ROOT = Path(__file__).resolve().parents[2]


def part(folder: Path, name: str, code: str, seconds: float = 30) -> Part:
    """A part whose program starts with a function that keeps a row."""
    start = (
        "import json, os, signal, subprocess, sys, time\n"
        f"def row(**r): print(json.dumps(r), file=open({str(folder / name)!r} + '.jsonl', 'a'))\n"
    )
    return Part(name, [sys.executable, "-c", start + code], seconds)


def test_survives_parts_that_fail_in_every_way(tmp_path, capsys):
    child, cut = tmp_path / "child", tmp_path / "is-cut-off.jsonl"
    programs = {
        "good": "row(value=1)",
        "hangs": "row(value=2); child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid)); time.sleep(600)",
        "raises": "row(value=3); raise ValueError('no such thing')",
        "crashes": "row(value=4); os.kill(os.getpid(), signal.SIGSEGV)",
        "errs": "row(value=5); row(error='RuntimeError: bad')",
        "prints-nothing": "pass",
        "is-cut-off": f"row(value=6); open({str(cut)!r}, 'a').write('{{')",
        "cannot": "row(skipped='PyAV cannot be imported')",
    }
    made = [
        part(tmp_path, name, code, 2 if name == "hangs" else 30) for name, code in programs.items()
    ]
    groups, kept = [made[:2], *([p] for p in made[2:])], []
    results = Results("c")
    run(groups, tmp_path, 60, results, lambda: kept.append([*results.parts]))
    assert {name: done["outcome"] for name, done in results.parts.items()} == {
        "good": "ok",
        "hangs": "failed: stopped after 2 s",
        "raises": "failed: exit status 1; ValueError: no such thing",
        "crashes": "failed: killed by SIGSEGV; it printed nothing",
        "errs": "failed: 1 of 2 measurements",
        "prints-nothing": "failed: it measured nothing; it printed nothing",
        "is-cut-off": "ok",
        "cannot": "skipped: PyAV cannot be imported",
    }
    values = [row["value"] for row in results.rows if "value" in row]
    assert values == [1, 2, 3, 4, 5, 6], "what was measured before is kept"
    assert len(kept) == len(groups) and kept[-1] == [*results.parts]
    assert len(capsys.readouterr().out.splitlines()) == len(made), "a line for every part"
    assert ended(int(child.read_text()))
    assert "stopped after 2 s" in summary(results)


def test_a_part_may_take_what_others_have_left(tmp_path):
    quick = part(tmp_path, "quick", "row(value=1)", 60)
    late = part(tmp_path, "late", "time.sleep(2); row(value=2)", 1)
    results = Results("c")
    run([[quick], [late]], tmp_path, 120, results, lambda: None)
    assert [done["outcome"] for done in results.parts.values()] == ["ok", "ok"]


def test_ends_when_the_time_is_over(tmp_path):
    slow = [[part(tmp_path, name, "row(a=1); time.sleep(600)")] for name in ("first", "second")]
    results = Results("c")
    run(slow, tmp_path, 1, results, lambda: None)
    assert [done["outcome"] for done in results.parts.values()] == [
        "failed: stopped after 1 s", "failed: no time was left",
    ]  # fmt: skip


def test_every_part_is_run_once_within_the_time():
    assert len(LIMITS) == sum(map(len, GROUPS))
    assert {*LIMITS, "small-step"} == {*parts.PARTS, "tests", "large"}
    assert [*GROUPS[0]] == ["machine"] and "train" in GROUPS[1], "the main command comes early"
    planned = sum(max(group.values()) for group in GROUPS)
    assert planned <= 60 * gpu_check.MINUTES < 60 * 9


@pytest.mark.parametrize(
    "name",
    [
        "compile", "stage", "resume", "base64", "base224", "mae", "attention", "store", "stream",
        pytest.param("timm", marks=needs_kernels), "decoder", "ranks", "sanitizer", "small-step",
    ],
)  # fmt: skip
def test_every_part_runs_on_tiny_sizes(name, tmp_path, monkeypatch):
    """All but the tests, and ``train --quick``, which has tests of its own. It is one process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(parts, "COMPILE_SECONDS", math.inf)
    rows = RowFile(tmp_path / "rows")
    with torch.compiler.set_stance("force_eager"):  # what is compiled is tested elsewhere
        parts.run(name, rows, parts.REHEARSAL)
    found = rows.read()
    assert not [row for row in found if "error" in row]
    for row in found:
        if "skipped" in row:
            assert re.search(MAY_BE_MISSING, row["skipped"]), row
        elif "difference" not in row:
            assert row["first_seconds" if name == "compile" else "seconds"] > 0
    least = {"ranks": 0, "sanitizer": 0, "resume": 1, "small-step": 1}.get(name, 2)
    assert len([row for row in found if "skipped" not in row]) >= least


MAY_BE_MISSING = (
    "CUDA graph|not compiled|nvidia.dali cannot be|dali is not installed|timm cannot be|"
    "GPUs are needed|compute-sanitizer is not on PATH"
)


def test_the_command_on_tiny_sizes(tmp_path):
    """Parts in processes of their own, with kernels in Triton's interpreter where there is one."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--out", tmp_path]
    done = subprocess.run(
        # Minutes enough for a machine that is busy.
        [*command, "--only", "tests,kernels", "--minutes", "60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    (file,) = tmp_path.glob("*-tests-kernels.json")
    results = Results(**json.loads(file.read_text()))
    outcomes = {name: found["outcome"] for name, found in results.parts.items()}
    assert outcomes.pop("kernels") == "ok" or _triton.MISSING
    assert outcomes == {"machine": "ok", "tests": "ok"} and done.returncode == 0, done.stdout
    page = file.with_suffix(".md").read_text()
    assert page.startswith(f"# {results.machine['device']}") and page in done.stdout
    assert "the figures mean nothing" in page and "## Targets" not in page


def test_a_baseline_gets_what_the_fastest_of_ours_gets(monkeypatch):
    """Against a compiled step, one that is also a CUDA graph would win by its launches alone."""
    measured: list[Variant] = []
    monkeypatch.setattr(parts, "measure_steps", lambda *args: measured.extend(args[-1]))
    parts.all_steps("base64", RowFile(Path("unused")), parts.REHEARSAL)
    assert OURS_COMPILED_GRAPH in measured
    assert any(v.compiled and v.graph and v.bf16 is BF16 and not v.ours for v in measured)


def test_compiling_in_advance_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "COMPILE_SECONDS", 0.0)
    rows = RowFile(tmp_path / "rows")
    parts.run("compile", rows, parts.REHEARSAL)
    assert [row["skipped"] for row in rows.read()] == [
        "6 of 6 steps are left to the parts that time them"
    ]


def test_tests_of_a_gpu_are_found():
    found = gpu_check.gpu_tests()
    assert {"tests/kernels/ops", "tests/kernels/test_on_gpu.py"} < {*found}
    assert all((ROOT / path).exists() for path in found)


def test_one_line_where_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: gpu-check: no NVIDIA GPU is visible to torch 2")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "have, reason",
    [
        ({"torch": "2.10.1"}, "torch 2.11 or newer (it has 2.10.1)"),
        ({"torch": "2.11.0+cu130", "triton": "3.5.1"}, "triton 3.6 or newer (it has 3.5.1)"),
        (
            {"triton": None, "rich": None},
            "triton 3.6 or newer (it has none), rich 13 or newer (it has none)",
        ),
    ],
)
def test_what_is_missing_or_too_old_is_one_line(have, reason, monkeypatch):
    def version(package):
        found = have.get(package, "99.0")
        if found is None:
            raise gpu_check.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(gpu_check, "version", version)
    said = gpu_check.missing(rehearse=True)
    assert said == f"{sys.executable} needs {reason}"


def test_needs_the_versions_that_an_installation_does():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, _, least = line.partition(";")[0].partition(">=")
        if name in gpu_check.NEEDS:
            assert gpu_check.NEEDS[name] == tuple(map(int, least.split(".")))


OTHERS = (
    "av", "tyro", "nvidia.dali", "timm", "xformers", "matplotlib", "PIL", "tensorboard",
    "pytest_benchmark",
)  # fmt: skip
"""Packages that a bare machine with a GPU may lack."""


def test_the_tests_of_all_kernels_need_no_other_package():
    """A file that imports one at its top would be left out on a card, and its kernel unchecked."""
    code = (
        f"import sys\nfor name in {OTHERS}: sys.modules[name] = None\n"
        "import pytest\nsys.exit(pytest.main(sys.argv[1:]))\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "gpu", "--collect-only"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "--continue-on-collection-errors", "tests/kernels"],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    lost = set(re.findall(r"^ERROR (\S+)", done.stdout, re.MULTILINE))
    for_cpus = {"tests/kernels/ops/test_memory_access.py"}
    assert "tests/kernels/ops/test_ops.py::test_parity[cuda-bias_gelu" in done.stdout, done.stdout
    assert lost <= for_cpus


def test_needs_no_other_package():
    """A bare machine with a GPU can run it: PyAV, tyro, DALI and others are not imported."""
    code = (
        "import sys\n"
        f"for name in {OTHERS}: sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from benchmarks.gpu_check import __main__, parts\n"
        "rows = parts.RowFile(Path('/dev/stdout'))\n"
        "for name in ('decoder', 'train', 'stream', 'timm'):\n"
        "    parts.run(name, rows, parts.REHEARSAL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reasons = [json.loads(line)["skipped"] for line in done.stdout.splitlines()]
    assert all(why.startswith(("av cannot be imported", "timm cannot be")) for why in reasons)
    assert len(reasons) == 3 + 4


@pytest.mark.parametrize("package", commands.PACKAGES)
def test_commands_are_skipped_without_a_package_of_theirs(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    rows = RowFile(tmp_path / "rows.jsonl")
    parts.run("train", rows, parts.REHEARSAL)
    (row,) = rows.read()
    assert row["skipped"].startswith(f"{package} cannot be imported")


@pytest.mark.parametrize("reason", ["operation not permitted", "CUDA out of memory"])
def test_a_graph_that_cannot_be_recorded_is_an_error(reason, monkeypatch):
    """Of a stage and of a step; a run goes on with eager steps. What does not fit is skipped."""

    def fail(*arguments):
        step_graph.log.warning("--cuda-graph: running without, %s", reason)

    monkeypatch.setattr(step_graph, "unsupported_reason", lambda device: None)
    monkeypatch.setattr(step_graph, "StepGraph", lambda step, device: fail)
    monkeypatch.setattr(stages.Stage, "run", fail)
    (cfg, clips), way = parts.REHEARSAL.steps["base64"], steps.OURS_GRAPH
    model = stages.build(cfg, way, stages.fresh_weights(cfg))
    with pytest.raises(RuntimeError, match=f"without, {reason}"):
        stages.run_stage(model, way, stages.SyntheticLoader(cfg, clips), 1, clips)
    (step,) = steps.pretraining(cfg, clips, [way], False).implementations[way.name]()
    with failures_in({}) as row:
        step()
    assert [*row] == ["skipped" if "memory" in reason else "error"]
    assert not step_graph.log.filters


def test_weights_that_differ_are_an_error(tmp_path, monkeypatch):
    """A step that computes something else is found by the comparison of weights."""
    real = stages.run_stage

    def wrong(model, *arguments, **options):
        found = real(model, *arguments, **options)
        if isinstance(model, IVCL):
            with torch.no_grad():
                model.decoder.pred.weight.mul_(1.5)
        return found

    monkeypatch.setattr(stages, "run_stage", wrong)
    rows = RowFile(tmp_path / "rows")
    stages.stage_parity(rows, parts.REHEARSAL.steps["base64"][0], 2)
    for row in rows.read():
        if "skipped" not in row:
            assert ("ParityError" in row.get("error", "")) == row["name"].startswith("ours")


def test_what_does_not_fit_into_memory_is_skipped(tmp_path):
    rows = RowFile(tmp_path / "rows")
    with rows.row("step", "large"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    skipped = "it does not fit into the GPU's memory"
    assert rows.read() == [{"benchmark": "step", "name": "large", "skipped": skipped}]


def test_attentions_that_are_missing_are_skipped(monkeypatch):
    attention._import.cache_clear()
    monkeypatch.setattr(attention, "_functions", {})
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    qkv = torch.zeros(1, 4, 24)
    with pytest.raises(Skip, match="flash-attn 2 cannot be imported"):
        baselines.package_attention("flash-attn 2")(qkv, 2)

    def flash_4(q, k, v):  # [B, N, heads, d], as flash-attn has it, with the log-sum-exp
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2), None

    module = ModuleType("flash_attn.cute")
    module.flash_attn_func = flash_4  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    attention._import.cache_clear()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    qkv, attend = torch.randn(3, 5, 3 * 2 * 64), baselines.package_attention("flash-attn 4")
    with pytest.raises(Skip, match="no kernel for sm_80"):
        attend(qkv, 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    torch.testing.assert_close(attend(qkv, 2), baselines.explicit_softmax(qkv, 2))
    attention._import.cache_clear()


def test_a_sanitizer_that_finds_something_is_an_error(tmp_path, monkeypatch):
    """With a stand-in for the program, which says what NVIDIA's says."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        "#!/bin/sh\n[ $2 = racecheck ] && echo '========= ERROR SUMMARY: 0 errors' && exit 0\n"
        "echo '========= Invalid __global__ read of size 4 bytes'\nexit 9\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    rows = RowFile(tmp_path / "rows")
    commands.sanitize(rows)
    memory, races = rows.read()
    assert "memcheck: ========= Invalid __global__ read of size 4 bytes" in memory["error"]
    assert "error" not in races and races["said"] == ["========= ERROR SUMMARY: 0 errors"]
