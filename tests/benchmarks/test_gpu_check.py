"""The check of a card, without one: parts that fail in every way, figures, the summary."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, race
from benchmarks.gpu import kernels, timing
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.part import CARD, Rows, Skip
from benchmarks.gpu.results import rated
from benchmarks.gpu.summary import summary
from benchmarks.gpu_check import LIMITS, ORDER, Part, run
from ivcl_fast.kernels import _triton
from ivcl_fast.kernels.aot_cases import cases
from tests.support.pretend_cuda import PretendCuda

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
        "says-nothing": "pass",
        "is-cut-off": f"row(value=6); open({str(cut)!r}, 'a').write('{{')",
        "cannot": "row(skipped='PyAV cannot be imported')",
    }
    made = [
        part(tmp_path, name, code, 2 if name == "hangs" else 30) for name, code in programs.items()
    ]
    groups, kept = [made[:2], *([p] for p in made[2:])], []
    results = run(groups, tmp_path, 60, lambda so_far: kept.append([*so_far]))
    assert {name: done["outcome"] for name, done in results.items()} == {
        "good": "ok",
        "hangs": "failed: stopped after 2 s",
        "raises": "failed: exit status 1; ValueError: no such thing",
        "crashes": "failed: killed by SIGSEGV; it said nothing",
        "errs": "failed: 1 of 2 measurements",
        "says-nothing": "failed: it measured nothing; it said nothing",
        "is-cut-off": "ok",
        "cannot": "skipped: PyAV cannot be imported",
    }
    values = [done["rows"][0].get("value") for done in results.values() if done["rows"]]
    assert values == [1, 2, 3, 4, 5, 6, None], "what was measured before is kept"
    assert len(kept) == len(groups) and kept[-1] == [*results]
    assert len(capsys.readouterr().out.splitlines()) == len(results), "a line for every part"
    assert ended(int(child.read_text()))
    assert "stopped after 2 s" in summary({"command": "c", "date": "d", "parts": results})


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_ends_when_the_time_is_over(tmp_path):
    slow = [[part(tmp_path, name, "row(a=1); time.sleep(600)")] for name in ("first", "second")]
    results = run(slow, tmp_path, 1, lambda so_far: None)
    assert [done["outcome"] for done in results.values()] == [
        "failed: stopped after 1 s", "failed: no time was left",
    ]  # fmt: skip


def test_every_part_is_run_once_within_the_time():
    assert sorted(name for group in ORDER for name in group) == sorted(LIMITS)
    assert set(LIMITS) == {*PARTS, "tests", "large"}
    assert gpu_check.MINUTES < 8


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


def test_needs_no_other_package():
    """So that a bare machine with a GPU can run it: PyAV, tyro and DALI are not imported."""
    others = "av", "tyro", "nvidia.dali", "timm", "xformers", "matplotlib", "PIL", "tensorboard"
    code = (
        "import sys\n"
        f"for name in {others}: sys.modules[name] = None\n"
        "import benchmarks.gpu_check, benchmarks.gpu.__main__, benchmarks.gpu.summary\n"
        "from benchmarks.gpu import decoder, kernels, machine, steps, store\n"
        "from benchmarks.gpu.part import Skip\n"
        "try: decoder.decoder(None, None)\n"
        "except Skip as reason: print(reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("av cannot be imported")


def test_a_row_that_fails_says_why_and_the_next_is_tried(tmp_path):
    rows = Rows(tmp_path / "rows")
    with rows.row(name="a") as row:
        row["seconds"] = 2.0
        raise RuntimeError("CUDA error: out of memory\nand more")
    with rows.row(name="b"):
        raise Skip("no such card")
    with rows.row(name="c") as row:
        row["seconds"] = 1.0
    assert gpu_check.read_rows(rows.file) == [
        {"name": "a", "seconds": 2.0, "error": "RuntimeError: CUDA error: out of memory"},
        {"name": "b", "skipped": "no such card"},
        {"name": "c", "seconds": 1.0},
    ]


def test_the_plugin_keeps_every_outcome(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.fixture\ndef broken(): raise OSError('no file')\n"
        "def test_unready(broken): pass\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
    )
    (tmp_path / "test_lost.py").write_text("import no_such_package\n")
    (tmp_path / "test_broken.py").write_text("1 / 0\n")
    rows = tmp_path / "rows.jsonl"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.tests", "-p",
        "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", tmp_path, tmp_path,
    ]  # fmt: skip
    environment = os.environ | {"IVCL_FAST_GPU_CHECK": str(rows)}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 1
    found = {r.get("test") or r.get("file"): r for r in gpu_check.read_rows(rows)}
    assert {name.rpartition("::")[2]: r["outcome"] for name, r in found.items()} == {
        "test_good": "passed", "test_bad": "failed", "test_unready": "failed",
        "test_lost.py": "not collected", "test_broken.py": "not collected",
    }  # fmt: skip
    errors = " ".join(r["error"] for r in found.values() if "error" in r)
    assert all(said in errors for said in ("assert 1 == 2", "no file", "ZeroDivisionError"))
    (skipped,) = (r["skipped"] for r in found.values() if "skipped" in r)
    assert "no_such_package" in skipped
    for name in ("test_broken.py", "test_some.py"):
        (tmp_path / name).write_text("def test_good(): pass\n")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, "a package that is missing is no failure"


@pytest.mark.skipif(_triton.MISSING is not None, reason=str(_triton.MISSING))
def test_bytes_and_flops_of_kernels():
    """Counted by hand for attention, patches and a norm at the target's sizes."""
    cfg, _ = CARD.step["base64"]
    clips, frames, tokens, width = 2, 32, 12, 768
    made = {
        f"{name} {kernels.step_name(launch)}": launch
        for name, call in cases(cfg, torch.bfloat16, clips).items()
        for launch in kernels.started(call)
    }
    one = 2 * frames * tokens * width  # bytes of a bfloat16 tensor of the encoder
    assert kernels.moved(made["short_attention, encoder forward"]) == 4 * one
    assert kernels.moved(made["short_attention, encoder backward"]) == 7 * one
    flops = 2 * 2 * frames * tokens**2 * width
    assert kernels.products(made["short_attention, encoder forward"]) == flops
    assert kernels.products(made["short_attention, encoder backward"]) == flops * 5 // 2
    norm = made["add_layer_norm, encoder forward"]
    assert kernels.moved(norm) == 4 * one + 2 * 4 * width and kernels.products(norm) == 0
    embed, keep, pixels = made["embed_patches, visible forward"], frames * 8, 192
    assert kernels.products(embed) == 2 * keep * pixels * width
    assert kernels.moved(embed) == (
        keep * (pixels + 8 + 2 * width) + 2 * pixels * width + 4 * width + 4 * 64 * width
    )
    assert kernels.products(made["embed_patches, visible backward"]) == 2 * keep * pixels * width
    assert kernels.products(made["patch_loss forward"]) == 0


def test_short_work_is_timed_in_graphs(monkeypatch):
    """On stand-ins: recorded once after a warm-up, replayed, the time of one call."""
    cuda, ran = PretendCuda(monkeypatch), []
    monkeypatch.setattr(timing, "DEVICE", torch.device("cuda"))
    calls = [lambda name=name: ran.append((name, cuda.streams[-1])) for name in "abcd"]
    seconds = timing.short(calls, repeats=3)
    assert ran == [("a", "side")] * 2 + [(name, "side") for name in "abcd"]
    assert cuda.log.count("recorded") == 1 and cuda.log.count("replay on default") == 1 + 3
    assert seconds == pytest.approx(2e-3 / 4), "an event 1 ms long and a replay, over 4 calls"
    assert timing.input_sets(10**8) == 3 and timing.input_sets(10**9) == 2
    assert timing.input_sets(10) == 32


def test_races_of_short_work_are_replayed(monkeypatch):
    cuda, ran = PretendCuda(monkeypatch), []
    monkeypatch.setattr(race, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(race, "flush_l2", lambda: None)
    monkeypatch.setattr(race, "reset_peak", lambda: None)
    monkeypatch.setattr(race, "peak_bytes", lambda: 5)
    names = "ours", "other"
    made = race.Race("some", lambda: {n: lambda n=n: ran.append(n) for n in names}, names)
    for made.short, times, replays in ((False, 2 + 4, 0), (True, 2 + 2 + 1, 4)):
        ran.clear()
        cuda.log.clear()
        made._times, made.rounds = {}, 4
        assert len(made.times("ours")) == 4
        assert ran.count("other") == times and cuda.log.count("replay on default") == 2 * replays


def test_a_machine_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(race, "ceilings", dict)
    assert race.machine()["commit"] == "unknown"


def test_long_work_is_timed_in_windows(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    done = []
    seconds, spread = timing.long(lambda: done.append(1), seconds=10.0, windows=5)
    assert len(done) == 2 + 5 * 4, "2 to see how long one takes, then windows of 2 s"
    assert seconds == 1 / 4 and spread == 0


MACHINE = {
    "what": "machine", "device": "NVIDIA H100 80GB HBM3", "packages": {"torch": "2.11.0"},
    "commit": "abc", "ceilings": {"bytes_per_s": 3e12, "flops_per_s": 800e12},
    "datasheet_flops_per_s": 989.4e12,
}  # fmt: skip


def step(name: str, seconds: float, loss: float = 1.0) -> dict:
    return {
        "preset": "base64", "name": name, "clips": 88, "flops": 88 * 10**11, "loss": loss,
        "first_seconds": 1.0, "spread": 0.01, "seconds": seconds, "peak_bytes": 10**9,
        "clips_per_second": 88 / seconds,
    }  # fmt: skip


def test_rates_shares_and_targets():
    attention = {"shape": "2048 x 12", "tokens": 12, "bytes": 3 * 10**8, "difference": 0.003}
    rows = {
        "machine": [MACHINE],
        "base64": [
            step("ours", 0.04), step("ours, CUDA graph", 0.03), step("reference, float32", 0.3),
            step("reference, bf16, SDPA", 0.12), step("reference, bf16, SDPA, compiled", 0.06),
        ],
        "attention": [
            attention | {"name": "ours", "seconds": 2e-4},
            attention | {"name": "SDPA flash", "seconds": 3e-4},
            attention | {"name": "SDPA cuDNN", "seconds": 1e-4, "difference": 0.5},
        ],
        "store": [
            {"name": "synthetic tensors", "clips": 8, "clips_per_second": 1e3, "data_wait": 0.0},
            {"name": "store, gpu", "clips": 8, "clips_per_second": 980.0, "data_wait": 0.01},
        ],
    }  # fmt: skip
    parts = {name: {"outcome": "ok", "seconds": 9.0, "rows": r} for name, r in rows.items()}
    results = rated(parts)
    best = results["base64"]["rows"][1]
    assert best["TFLOP/s"] == pytest.approx(293.3, rel=1e-3)
    assert best["mfu"] == pytest.approx(0.2965, rel=1e-3)
    assert best["of_gemm_rate"] == pytest.approx(0.3667, rel=1e-3)
    assert results["attention"]["rows"][0]["of_copy_bandwidth"] == 0.5
    text = summary({"command": "make gpu-check", "date": "d", "parts": results})
    for line in (
        "| base64 step | >= 2500 clips/s | 2933 clips/s | reached |",
        "| base64 step, vs eager bf16 | >= 3x | 4x | reached |",
        "| base64 step, vs compiled | >= 1.5x | 2x | reached |",
        "| short_attention up to 64 tokens, of copying | >= 60 % | 50 % |  |",
        "| short_attention up to 64 tokens, vs the best rival | >= 1x | 1.5x | reached |",
        "| training from the store, of synthetic tensors | >= 97 % | 98 % | reached |",
    ):
        assert line in text
    assert "| SDPA cuDNN | 100.0 | differs |" in text, "a wrong result is no rival"
    assert gpu_check.card_name(results) == "nvidia-h100-80gb-hbm3"


def test_no_speedup_where_the_loss_differs():
    rows = [step("ours", 0.03, loss=1.1), step("reference, float32", 0.3)]
    parts = {"base64": {"outcome": "ok", "seconds": 1.0, "rows": rows}}
    text = summary({"command": "make gpu-check", "date": "d", "parts": rated(parts)})
    assert "| ours | 30.0 | 1% | 2,933 | loss differs |" in text
    assert "## Targets" not in text


def test_summary_of_nothing():
    assert summary({"command": "c", "date": "d", "parts": {}}).startswith("# unknown card")
