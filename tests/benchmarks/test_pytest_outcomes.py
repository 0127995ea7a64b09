"""The plugin that keeps the outcomes of the tests that gpu-check runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.results import Row, RowFile

ROOT = Path(__file__).resolve().parents[2]


def with_the_plugin(
    folder: Path, *flags: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[Row]]:
    """Run the tests of a folder under the plugin; returns also its rows."""
    rows = folder / "rows.jsonl"
    rows.unlink(missing_ok=True)
    plugins = ["-p", "benchmarks.gpu_check.pytest_outcomes", "-p", "no:cacheprovider"]
    where = ["--rootdir", str(folder), str(folder)]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *flags, *where]
    known = os.environ | {"IVCL_FAST_GPU_CHECK": str(rows)} | environment
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True)
    return done, RowFile(rows).read()


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
    done, rows = with_the_plugin(tmp_path, "--continue-on-collection-errors")
    assert done.returncode == 1
    found = {r.get("test") or r.get("file"): r for r in rows}
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
    done, _ = with_the_plugin(tmp_path, "--continue-on-collection-errors")
    assert done.returncode == 0, "a package that is missing is no failure"


def test_the_plugin_says_why_all_tests_were_skipped(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.skip(reason='no such card')\ndef test_marked(): pass\n"
        "def test_itself(): pytest.skip('needs 60 GB')\n"
    )
    done, found = with_the_plugin(tmp_path)
    assert found == [{"outcome": "skipped", "skipped": "no such card"}]
    assert gpu_check.outcome(done.returncode, 20, found, "") == "skipped: no such card"


def test_the_plugin_writes_each_test_once(tmp_path):
    """Also from several processes, in which the tests forget that they are some of several."""
    (tmp_path / "conftest.py").write_text(
        "import os, pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def alone(): os.environ.pop('PYTEST_XDIST_WORKER', None)\n"
    )
    (tmp_path / "test_some.py").write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    done, rows = with_the_plugin(tmp_path, "-n", "2")
    assert done.returncode == 1, done.stdout
    assert sorted(row["outcome"] for row in rows) == ["failed", "passed"]


def test_the_plugin_thins_the_tests_of_a_function(tmp_path):
    """The first, the last and some between are left, whatever -k has chosen before."""
    (tmp_path / "test_many.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(100))\ndef test_n(n): pass\n"
        "@pytest.mark.parametrize('n', range(3))\ndef test_few(n): pass\n"
    )
    done, rows = with_the_plugin(tmp_path, "-k", "not 99", IVCL_FAST_GPU_CHECK_PER_FUNCTION="4")
    assert done.returncode == 0 and "7 passed" in done.stdout, done.stdout
    found = [row["test"].partition("::")[2] for row in rows]
    assert found == [f"test_n[{n}]" for n in (0, 33, 65, 98)] + [f"test_few[{n}]" for n in range(3)]
