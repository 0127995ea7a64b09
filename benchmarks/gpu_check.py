"""``make gpu-check``: what an NVIDIA GPU makes of this repository, within 8 minutes.

Runs the tests that need a GPU, then measures kernels against the card's limits, training steps
against their rivals, a batch sweep, training from a store and decoding. Nothing is installed or
built: beside torch and Triton it takes a few small packages, and says so where one is missing; DALI
and PyAV are used where they are there.

Every part is a process of its own with a time limit. One that fails, hangs or takes the driver's
context along costs its own figures only, and those it had already are kept. Writes
``<card>.json`` and, to be read, ``<card>.md`` after every part. Exit status: 0, or 1 if a part
failed, or 2 if there is nothing to check here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NEEDS = {
    "torch": (2, 11), "triton": (3, 6), "numpy": (1, 26), "einops": (0, 8), "safetensors": (0, 4),
    "huggingface-hub": (0, 23), "rich": (13,), "pytest": (8,),
}  # fmt: skip
"""What models, trainer and tests import, and the least versions, as in ``pyproject.toml``."""
MINUTES = 7.5
LIMITS = {
    "machine": 40, "tests": 200, "compile": 200, "large": 60, "kernels": 70, "attention": 80,
    "base64": 80, "base224": 80, "batches": 60, "store": 60, "decoder": 45, "train": 100,
}  # fmt: skip
"""Seconds that each part may take; what is left of the whole time may be less."""
ORDER = (
    ("machine",), ("tests", "compile"), ("base64",), ("kernels",), ("attention",), ("base224",),
    ("store",), ("batches",), ("large",), ("decoder",), ("train",),
)  # fmt: skip
"""Parts side by side, then the next: only what is not timed may share the card."""


@dataclass
class Part:
    """A command that appends rows of JSON to a file."""

    name: str
    command: Sequence[str]
    seconds: float
    """Its time limit."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A part at work, in a session of its own so that its children end with it."""

    part: Part
    folder: Path

    def __post_init__(self) -> None:
        self.rows, self.log = (self.folder / f"{self.part.name}.{e}" for e in ("jsonl", "log"))
        self.rows.touch()
        self.start = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*self.part.command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | self.part.environment,
            )  # fmt: skip

    def wait(self, deadline: float) -> dict[str, Any]:
        """What came of it, once it has ended or its time is over."""
        limit = min(self.part.seconds, deadline - self.start)
        try:
            status = self.process.wait(max(0.0, limit - (time.monotonic() - self.start)))
        except subprocess.TimeoutExpired:
            status = None
        self.end()
        rows = read_rows(self.rows)
        ended = outcome(status, limit, rows, self.log.read_text(errors="replace"))
        return {"outcome": ended, "seconds": round(time.monotonic() - self.start, 1), "rows": rows}

    def end(self) -> None:
        """Kill it and its children; nothing where they have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, which a kill may have cut short."""
    rows = []
    for line in file.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def outcome(status: int | None, limit: float, rows: list[dict[str, Any]], log: str) -> str:
    """In words; ``ok`` or ``skipped: ...`` where nothing went wrong."""
    last = (log.strip().splitlines() or ["it said nothing"])[-1].strip()[:300]
    if status is None:
        return f"failed: stopped after {limit:.0f} s"
    if status < 0:
        return f"failed: killed by {signal.Signals(-status).name}; {last}"
    failed = [row for row in rows if "error" in row]
    if failed:
        return f"failed: {len(failed)} of {len(rows)} measurements"
    if status:
        return f"failed: exit status {status}; {last}"
    if not rows:
        return f"failed: it measured nothing; {last}"
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    return f"skipped: {skipped[0]}" if len(skipped) == len(rows) else "ok"


def run(
    groups: Sequence[Sequence[Part]], folder: Path, seconds: float, keep: Any
) -> dict[str, dict[str, Any]]:
    """Parts of a group side by side, group after group; ``keep(results)`` after each of them."""
    results: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + seconds
    for group in groups:
        if time.monotonic() >= deadline:
            late = {"outcome": "failed: no time was left", "seconds": 0.0, "rows": []}
            results |= {part.name: late for part in group}
            keep(results)
            continue
        running = [Running(part, folder) for part in group]
        try:
            for at_work in running:
                results[at_work.part.name] = at_work.wait(deadline)
                done = results[at_work.part.name]
                print(f"{at_work.part.name}: {done['outcome']}, {done['seconds']} s", flush=True)
        finally:
            for at_work in running:
                at_work.end()
        keep(results)
    return results


def parts(folder: Path, rehearse: bool) -> list[list[Part]]:
    """All there are, in their order."""
    made = {}
    for name in LIMITS:
        command = [sys.executable, "-m", "benchmarks.gpu", name, str(folder / f"{name}.jsonl")]
        made[name] = Part(name, command + ["--rehearse"] * rehearse, LIMITS[name])
    made["tests"] = tests("tests", "gpu and not large", folder, rehearse)
    made["large"] = tests("large", "gpu and large", folder, rehearse)
    if rehearse:
        made["kernels"].environment["TRITON_INTERPRET"] = "1"
    return [[made[name] for name in group] for group in ORDER]


def tests(name: str, marked: str, folder: Path, rehearse: bool) -> Part:
    """Those ``marked`` so, on several processes where pytest can: most of their time is compiling.

    A rehearsal runs the same files' tests of a few kinds on the CPU.
    """
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.tests",
        "-p", "no:cacheprovider", "--continue-on-collection-errors", "-o", "addopts=",
    ]  # fmt: skip
    if rehearse:
        command += ["-m", "not gpu", "-k", "many_frames", "tests/kernels/test_on_gpu.py"]
    else:
        command += ["-m", marked, *gpu_tests()]
        if name == "tests" and find_spec("xdist"):
            command += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))]
    rows = {"IVCL_FAST_GPU_CHECK": str(folder / f"{name}.jsonl")}
    return Part(name, command, LIMITS[name], rows)


def gpu_tests() -> list[str]:
    """Where tests are marked ``gpu``: other files may need packages that are not here."""
    named = [p for p in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in p.read_text()]
    return sorted(str(p.relative_to(ROOT)) for p in [ROOT / "tests" / "ops", *named])


def missing(rehearse: bool) -> str | None:
    """Why there is nothing to check here, or None."""
    lacking = []
    for package, least in NEEDS.items():
        try:
            have = version(package)
        except PackageNotFoundError:
            have = "none"
        if tuple(map(int, re.findall(r"\d+", have)[:2])) < least:
            lacking.append(f"{package} {'.'.join(map(str, least))} or newer (it has {have})")
    if lacking:
        return f"{sys.executable} needs {', '.join(lacking)}"
    import torch

    if not rehearse and not torch.cuda.is_available():
        built = "" if torch.version.cuda else ", which is built without CUDA"
        return f"no NVIDIA GPU is visible to torch {torch.__version__}{built}"
    return None


def card_name(results: dict[str, dict[str, Any]]) -> str:
    """The card's name as a file's."""
    described = [row for row in results.get("machine", {}).get("rows", []) if "device" in row]
    device = described[0]["device"] if described else "unknown card"
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make gpu-check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help=f"folder for results ({RESULTS})")
    parser.add_argument("--only", default="", help="some parts alone, by name, with commas")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes, on a CPU if need be; give --out"
    )
    options = parser.parse_args()
    if unknown := {*options.only.split(",")} - {*LIMITS, ""}:
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(LIMITS)}")
    if options.rehearse and options.out is None:
        parser.error("--rehearse: its figures are no results, give a folder of their own (--out)")
    if reason := missing(options.rehearse):
        print(f"error: gpu-check: {reason}", file=sys.stderr)
        return 2
    from benchmarks.gpu.results import rated
    from benchmarks.gpu.summary import summary
    from ivcl_fast.files import write_json, write_text

    out = options.out or RESULTS
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": "make gpu-check" + " --rehearse" * options.rehearse,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def keep(results: dict[str, dict[str, Any]]) -> None:
        report["parts"] = rated(results)
        write_json(out / f"{card_name(results)}.json", report)
        write_text(out / f"{card_name(results)}.md", summary(report))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = options.only.split(",") if options.only else [*LIMITS]
        groups = [
            [part for part in group if part.name in wanted]
            for group in parts(folder, options.rehearse)
        ]
        results = run([g for g in groups if g], folder, options.minutes * 60, keep)
    print(summary(report))
    print(f"written: {out / card_name(results)}.json and .md")
    return int(any(done["outcome"].startswith("failed") for done in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
