"""The check of a card without one: stand-in parts, tiny sizes, and a stand-in for nvidia-smi."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks import gpu_parts as parts
from benchmarks.gpu_check import page, run
from benchmarks.results import Results, RowFile
from tests.support.processes import ended

ROOT = Path(__file__).resolve().parents[2]


def program(folder: Path, name: str, code: str) -> list[str]:
    """A command that starts with a function that keeps a row."""
    start = (
        "import json, os, signal, subprocess, sys, time\n"
        f"def row(**r): print(json.dumps(r), file=open({str(folder / name)!r} + '.jsonl', 'a'))\n"
    )
    return [sys.executable, "-c", start + code]


def test_parts_that_fail_in_every_way_cost_only_their_own_figures(tmp_path, capsys):
    child, cut = tmp_path / "child", tmp_path / "is-cut-off.jsonl"
    programs = {
        "hangs": "row(value=2); child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid)); time.sleep(600)",
        "machine": "row(device='NVIDIA H100 PCIe')",
        "speed": "row(benchmark='stage', name='ours', seconds=0.1, count=256, unit='clips')",
        "raises": "row(value=3); raise ValueError('no such thing')",
        "crashes": "row(value=4); os.kill(os.getpid(), signal.SIGSEGV)",
        "errs": "row(value=5); row(benchmark='op', name='ours', error='ParityError: bad')",
        "is-cut-off": f"row(value=6); open({str(cut)!r}, 'a').write('{{')",
        "cannot": "row(skipped='PyAV cannot be imported')",
        "tests": "print('t.py::test_a FAILED'); print('1 failed in 2 s'); sys.exit(1)",
    }
    commands = {name: program(tmp_path, name, code) for name, code in programs.items()}
    minutes = dict.fromkeys(commands, 1) | {"hangs": 4 / 60}
    results = Results("make gpu-check")
    run(commands, minutes, results, tmp_path)
    assert {name: done["outcome"] for name, done in results.parts.items()} == {
        "hangs": "stopped: timeout after 1 measurements", "machine": "ok", "speed": "ok",
        "raises": "failed: exit status 1; ValueError: no such thing",
        "crashes": "failed: exit status -11; no output", "errs": "failed: 1 of 2 measurements",
        "is-cut-off": "ok", "cannot": "skipped: PyAV cannot be imported",
        "tests": "failed: exit status 1; 1 failed in 2 s",
    }  # fmt: skip
    assert [row["value"] for row in results.rows if "value" in row] == [2, 3, 4, 5, 6]
    assert ended(int(child.read_text()))
    said = capsys.readouterr().out
    assert 'repeat: make gpu-check ARGS="--only raises"' in said and "IVCL_FAST_TRITON=0" in said
    text = tmp_path.with_suffix(".md").read_text()
    assert text.startswith("# NVIDIA H100 PCIe\n")
    for line in (
        "- 256 clips: 2,560 clips/s, target 2,400, bound 3,212",
        "- op, ours: ParityError: bad",
        "- `t.py::test_a FAILED`",
        f'- Log: `{tmp_path.name}/tests.log`; repeat: make gpu-check ARGS="--only tests"',
    ):
        assert line in text


@pytest.mark.usefixtures("rehearsal")
@pytest.mark.parametrize("name", ["speed", "kernels", "attention", "profile", "base64"])
def test_every_measuring_part_runs_on_tiny_sizes(name, tmp_path):
    rows = RowFile(tmp_path / "rows")
    with torch.compiler.set_stance("force_eager"):  # what is compiled is tested elsewhere
        parts.run(name, rows)
    found = rows.read()
    assert not [row for row in found if "error" in row]
    for row in found:
        if "skipped" in row:
            assert re.search("CUDA graph|not compiled", row["skipped"]), row
        elif "launches" not in row:
            assert row["seconds"] > 0
    assert len([row for row in found if "skipped" not in row]) >= 2


TRACE = {
    "hash_seeds_kernel": 10, "embed_patches_forward_kernel": 30, "nvjet_tst_128x256": 600,
    "short_attention_forward_kernel": 90, "bias_gelu_forward_kernel": 120,
    "add_layer_norm_backward_kernel": 150, "embed_patches_backward_kernel": 60,
    "nvjet_tst_64x128": 200, "void at::native::multi_tensor_apply_kernel": 40,
}  # fmt: skip
"""The kernels of a step, with made-up microseconds."""


def test_the_table_of_a_step_is_filled_from_a_profile(tmp_path, monkeypatch):
    """Products after the backward pass are Muon's, and measured stands beside expected."""
    monkeypatch.setattr(parts, "DEVICE", torch.device("cuda"))
    events, now = [{"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 9}], 0
    for _ in range(parts.PROFILED_STEPS):
        for name, time in TRACE.items():
            events.append({"cat": "kernel", "name": name, "ts": now, "dur": time})
            now += time + 1
    rows = RowFile(tmp_path / "rows")
    parts.add_rows(events[::-1], 256, rows)
    found = {row["name"]: row for row in rows.read() if row["benchmark"] == "a step of 256 clips"}
    times = {name: round(1e6 * row["seconds"]) for name, row in found.items()}
    assert times == {
        "attention": 90, "LayerNorm": 150, "GELU": 120, "matrix products": 600,
        "sums of biases' gradients": 0, "patches, masks, loss, copies and the rest": 100,
        "clipping, Muon and AdamW": 240,
    }  # fmt: skip
    assert found["matrix products"]["launches"] == 1
    results = Results("make gpu-check", rows=[{"part": "profile", **row} for row in rows.read()])
    results.parts["profile"] = {"outcome": "ok", "seconds": 1.0}
    text = page(results, tmp_path)
    (line,) = (line for line in text.splitlines() if "| GELU " in line)
    assert "120 µs" in line and "12.7 ms" in line and "nsys profile" in text and "ncu --set" in text


def test_the_command_with_a_stand_in_for_the_driver(tmp_path):
    """Parts run in separate processes; the state of the card is recorded beside their figures."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n[ $1 = --query-gpu=name ] && echo NVIDIA X1 || echo 1410 MHz\n")
    program.chmod(0o755)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--out", tmp_path]
    done = subprocess.run(
        [*command, "--only", "speed"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    results = Results(**json.loads((tmp_path / "nvidia-x1-speed.json").read_text()))
    assert results.parts["speed"]["outcome"] == "ok" and results.machine["device"]
    assert any(row["name"] == "ours" and row["seconds"] for row in results.rows)
    text = (tmp_path / "nvidia-x1-speed.md").read_text()
    assert "the figures are meaningless" in text and "## speed" in text and text in done.stdout


def test_one_line_where_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and "no NVIDIA GPU" in err and err.count("\n") == 1


OTHERS = (
    "av", "tyro", "nvidia.dali", "timm", "xformers", "jinja2", "PIL", "tensorboard",
    "pytest_benchmark",
)  # fmt: skip
"""Packages that a bare machine with a GPU may lack."""


def test_a_bare_machine_can_run_the_parts_and_the_tests_of_all_kernels():
    """A test file that imports more would be left out on a card, and its kernel unchecked."""
    code = (
        f"import sys\nfor name in {OTHERS}: sys.modules[name] = None\n"
        "from pathlib import Path\nimport pytest\n"
        "from benchmarks import gpu_check, gpu_parts as parts\n"
        "rows = parts.RowFile(Path('/dev/stdout'))\n"
        "for name in ('train', 'loaders'): parts.run(name, rows)\n"
        "sys.exit(pytest.main([*sys.argv[1:], *gpu_check.test_files()[:2], *gpu_check.PARITY]))\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "gpu", "--collect-only"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "-p", "tests.support.thin"],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("av cannot be imported") >= 3
    assert "tests/kernels/ops/test_ops.py::test_parity[cuda-bias_gelu" in done.stdout
