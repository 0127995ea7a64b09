"""How benchmarks measure: wrong results get no time, failures are told, short work is a graph."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch

from benchmarks import machine, timing
from benchmarks.benchmark import (
    REPLAYS,
    Benchmark,
    ParityError,
    Setup,
    check_parity,
    measure,
)
from benchmarks.results import Skip
from tests.support.pretend_cuda import PretendCuda

EXPECTED = torch.linspace(-1, 1, 200).view(10, 20)


def no_kernel():
    raise Skip("Triton cannot be imported")


def broken():
    raise RuntimeError("CUDA error: out of memory\nand more")


BENCHMARK = Benchmark(
    "some op", ("ours", "eager", "wrong", "absent", "broken"),
    lambda: Setup(
        {
            "ours": lambda: [lambda: (EXPECTED + 1e-3, EXPECTED.sum())],
            "eager": lambda: [lambda: (EXPECTED, EXPECTED.sum())],
            "wrong": lambda: [lambda: (EXPECTED.flip(0), EXPECTED.sum())],
            "absent": no_kernel,
            "broken": broken,
        },
        (EXPECTED, EXPECTED.sum()),
    ),
    rounds=4, facts={"bytes": 800},
)  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_wrong_and_broken_implementations_are_not_timed(together):
    rows = {}
    measure(BENCHMARK, lambda row: rows.update({row["name"]: row}), together)
    assert {name for name, row in rows.items() if "seconds" in row} == {"ours", "eager"}
    assert len(rows["ours"]["times"]) == 4 and rows["ours"]["bytes"] == 800
    assert rows["ours"]["difference"] == pytest.approx(1e-3, rel=1)
    assert "ParityError" in rows["wrong"]["error"] and "0.02" in rows["wrong"]["error"]
    assert rows["absent"]["skipped"] == "Triton cannot be imported"
    assert rows["broken"]["error"] == "RuntimeError: CUDA error: out of memory"


def test_a_set_up_that_fails_is_every_implementation_s_error():
    rows = []
    measure(replace(BENCHMARK, setup=broken), rows.append)
    assert [row["name"] for row in rows] == [*BENCHMARK.implementations]
    assert all("out of memory" in row["error"] for row in rows)


@pytest.mark.parametrize(
    "got",
    [
        EXPECTED * 1.03,
        EXPECTED.index_fill(0, torch.tensor([3]), 0),  # a row that no program wrote
        EXPECTED.where(torch.arange(200).view(10, 20) != 7, EXPECTED + 0.1),  # one element
        EXPECTED.where(EXPECTED < 1, torch.nan),
        EXPECTED[:, :19],
    ],
)
def test_parity_finds_what_is_wrong(got):
    with pytest.raises(ParityError):
        check_parity([EXPECTED, got], [EXPECTED, EXPECTED], 0.02)
    assert check_parity(EXPECTED.bfloat16(), EXPECTED, 0.02) < 0.01
    assert check_parity(EXPECTED, EXPECTED, 0) == 0


def test_short_work_is_replayed_from_a_graph(monkeypatch):
    """On stand-ins for CUDA: recorded once after a warm-up, with every set of inputs."""
    cuda, ran = PretendCuda(monkeypatch), []
    monkeypatch.setattr(timing, "DEVICE", torch.device("cuda"))
    calls = [lambda name=name: ran.append((name, cuda.streams[-1])) for name in "abcd"]
    replay = timing.in_turn(calls, graph=True)
    assert timing.seconds(replay, count=3) == pytest.approx(4e-3 / 3), "1 ms, and 1 ms a replay"
    assert ran == [("a", "side")] * 2 + [(name, "side") for name in "abcd"]
    assert cuda.log.count("recorded") == 1 and cuda.log.count("replay on default") == 3
    assert timing.input_sets(10**8) == 3 and timing.input_sets(10**9) == 2
    assert timing.input_sets(10) == 32


def test_a_graph_is_replayed_in_a_row(monkeypatch):
    """An idle GPU waits for the first launch, as long as a short kernel takes."""
    cuda = PretendCuda(monkeypatch)
    monkeypatch.setattr(timing, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(timing, "reset_peak", lambda: None)
    monkeypatch.setattr(timing, "peak_bytes", lambda: 0)
    one = Setup({"ours": lambda: [lambda: EXPECTED]}, EXPECTED)
    rows = []
    measure(Benchmark("op", ("ours",), lambda: one, rounds=4, graph=True), rows.append)
    assert len(rows[0]["times"]) == 4 and "error" not in rows[0]
    assert cuda.log.count("replay on default") == 4 * REPLAYS > 4


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_results_of_changed_code_are_not_those_of_the_commit(tmp_path, monkeypatch):
    """Nobody could repeat them from the commit that they name."""

    def git(*arguments):
        who = "-c", "user.name=a", "-c", "user.email=a@b.c"
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "machine.py"
    file.write_text("before")
    for arguments in (["init"], ["add", "."], ["commit", "-m", "first"], ["tag", "-am", "t", "v1"]):
        git(*arguments)
    monkeypatch.setattr(machine, "__file__", str(file))
    monkeypatch.setattr(machine, "ceilings", dict)
    clean = machine.describe()["commit"]
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "results.json").write_text("untracked")
    assert machine.describe()["commit"] == clean
    file.write_text("after")
    assert machine.describe()["commit"] == f"{clean}-dirty"


def test_a_machine_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(machine, "ceilings", dict)
    assert machine.describe()["commit"] == "unknown"
