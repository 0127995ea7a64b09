"""``make gpu-check``: the tests and benchmarks that need an NVIDIA GPU, within 9 minutes.

Runs ``train`` end to end and the tests marked ``gpu``, then measures what training does: the
trainer's own stage with Muon, clipping, compiled blocks and CUDA graphs, whose weights are compared
with the reference's. Then come steps against their baselines, image MAE, attention, kernels,
training from a store and streamed, ``accelerate`` on timm, decoding, and two GPUs if there are two.
Nothing is installed or built: torch, Triton and a few small packages are enough, and a missing one
is named. What needs DALI, PyAV, timm, flash-attn, compute-sanitizer or a second GPU is skipped
without it, with the reason.

Every part is a process of its own with a time limit, to which is added what the parts before have
left of theirs. One that fails, hangs or loses the driver's context costs only its own figures, and
those it measured before are kept. After every part the results are written to ``<card>.json`` and,
to be read, to ``<card>.md``. The exit status is 0, or 1 if a part failed, or 2 if nothing can be
measured on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.results import RESULTS, ROOT, Results, Row, RowFile

NEEDS = {
    "torch": (2, 11), "triton": (3, 6), "numpy": (1, 26), "einops": (0, 8), "safetensors": (0, 4),
    "huggingface-hub": (0, 23), "rich": (13,), "pytest": (8,),
}  # fmt: skip
"""What models, trainer and tests import, and the least versions, as in ``pyproject.toml``."""
PARTS, PLUGIN = "benchmarks.gpu_check.parts", "benchmarks.gpu_check.pytest_outcomes"
MINUTES = 8.5
GROUPS = (
    {"machine": 20}, {"train": 80, "compile": 80}, {"tests": 75, "sanitizer": 75, "resume": 75},
    {"stage": 55}, {"base64": 40}, {"mae": 18}, {"attention": 30}, {"kernels": 28}, {"store": 15},
    {"stream": 18}, {"timm": 12}, {"base224": 27}, {"decoder": 15}, {"ranks": 55}, {"large": 20},
)  # fmt: skip
"""Groups of parts, one group after the other, with the seconds that each part has for itself; it
may also take what parts before it have left. Parts of a group run at the same time: they are not
timed, except for how long ``train`` takes beside the compiler."""
LIMITS = {name: seconds for group in GROUPS for name, seconds in group.items()}
TEST_BYTES = 8 << 30
"""Memory of the GPU for each process that runs tests."""
PER_FUNCTION = 8
"""Tests that run of each test function: those with the first and the last parameters, and some
between. Without a GPU all of them run on the same kernels in ``make test``."""


@dataclass
class Part:
    """A command that appends rows of JSON to a file, and its process once it is started."""

    name: str
    command: Sequence[str]
    limit: float
    """Seconds it has for itself."""
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path) -> None:
        """Start the process, in a session of its own so that its children end with it."""
        self.rows, self.log = RowFile(folder / f"{self.name}.jsonl"), folder / f"{self.name}.log"
        self.rows.file.touch()
        self.begin = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*self.command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | self.environment,
            )  # fmt: skip

    def wait(self, deadline: float) -> tuple[str, float, list[Row]]:
        """Return the outcome, the seconds and the rows, once it has ended or the time is over."""
        try:
            status = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        self.end()
        rows = self.rows.read()
        log = self.log.read_text(errors="replace")
        ended = outcome(status, deadline - self.begin, rows, log)
        return ended, round(time.monotonic() - self.begin, 1), rows

    def end(self) -> None:
        """Kill the process and its children, if they are running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def outcome(status: int | None, limit: float, rows: list[Row], log: str) -> str:
    """Return "ok", "skipped: REASON" or "failed: REASON"; ``status`` None is a timeout."""
    last = (log.strip().splitlines() or ["it printed nothing"])[-1].strip()[:300]
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
    groups: Sequence[Sequence[Part]],
    folder: Path,
    seconds: float,
    results: Results,
    keep: Callable[[], None],
) -> None:
    """Run groups of parts, add what they measure to ``results``, and call ``keep`` after each."""
    begin = time.monotonic()
    deadline, planned = begin + seconds, 0.0
    for group in groups:
        running = [] if time.monotonic() >= deadline else group
        if not running:
            unmeasured = {"outcome": "failed: no time was left", "seconds": 0.0}
            results.parts |= {part.name: unmeasured for part in group}
        for part in running:
            part.start(folder)
        try:
            for part in running:
                ended, taken, rows = part.wait(min(deadline, begin + planned + part.limit))
                results.parts[part.name] = {"outcome": ended, "seconds": taken}
                if part.name == "machine" and ended == "ok":
                    results.machine = rows[0]
                else:
                    results.rows += [{"part": part.name, **row} for row in rows]
                print(f"{part.name}: {ended}, {taken} s", flush=True)
        finally:
            for part in running:
                part.end()
        planned += max(part.limit for part in group)
        keep()


def all_parts(folder: Path, rehearse: bool) -> list[list[Part]]:
    """Return every part, in groups."""
    made = {}
    for name, limit in LIMITS.items():
        command = [sys.executable, "-m", PARTS, name, str(folder / f"{name}.jsonl")]
        made[name] = Part(name, command + ["--rehearse"] * rehearse, limit)
        made[name].environment["IVCL_FAST_BENCHMARK_FOLDER"] = str(folder)  # videos are made once
    made["tests"] = tests_part("tests", "gpu and not large", folder, rehearse)
    made["large"] = tests_part("large", "gpu and large", folder, rehearse)
    if rehearse:
        made["kernels"].environment["TRITON_INTERPRET"] = "1"
    return [[made[name] for name in group] for group in GROUPS]


def tests_part(name: str, marked: str, folder: Path, rehearse: bool) -> Part:
    """Return the part that runs the tests with a mark, or a few tests of a CPU as a rehearsal.

    Several processes run them if pytest-xdist is installed: most of their time is compiling. They
    are thinned, see :data:`PER_FUNCTION`.
    """
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", PLUGIN,
        "-p", "no:cacheprovider", "--continue-on-collection-errors", "-o", "addopts=",
    ]  # fmt: skip
    if rehearse:
        command += ["-m", "not gpu", "-k", "many_frames", "tests/kernels/test_on_gpu.py"]
    else:
        command += ["-m", marked, *gpu_tests()]
        if name == "tests" and find_spec("xdist"):
            import torch  # not needed to rehearse

            memory = torch.cuda.get_device_properties(0).total_memory
            processes = min(8, (os.cpu_count() or 1) // 2, memory // TEST_BYTES)
            command += ["-n", str(max(1, processes))]
    rows = {
        "IVCL_FAST_GPU_CHECK": str(folder / f"{name}.jsonl"),
        "IVCL_FAST_GPU_CHECK_PER_FUNCTION": str(PER_FUNCTION),
    }
    return Part(name, command, LIMITS[name], rows)


def gpu_tests() -> list[str]:
    """Return the test files, and folders by their ``conftest.py``, that mark tests with ``gpu``.

    The other test files may need packages that are missing.
    """
    files = [p for p in (ROOT / "tests").rglob("*.py") if "pytest.mark.gpu" in p.read_text()]
    paths = [file.parent if file.name == "conftest.py" else file for file in files]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def missing(rehearse: bool) -> str | None:
    """Return why nothing can be measured on this machine, or None."""
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


def card_name(results: Results) -> str:
    """Return the name of the card as the name of a file."""
    device = results.machine.get("device", "unknown card")
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="make gpu-check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help=f"folder for results ({RESULTS})")
    parser.add_argument("--only", default="", help="names of parts to run, with commas")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES,
        help="time limit of all parts (%(default)s); with more, each part has more, too",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true",
        help="tiny sizes, also on a CPU, to show that every part runs; needs --out",
    )  # fmt: skip
    options = parser.parse_args()
    if unknown := {*options.only.split(",")} - {*LIMITS, ""}:
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(LIMITS)}")
    if options.rehearse and options.out is None:
        parser.error("--rehearse: its figures mean nothing, give a folder for them with --out")
    if reason := missing(options.rehearse):
        print(f"error: gpu-check: {reason}", file=sys.stderr)
        return 2
    from benchmarks.summary import summary
    from ivcl_fast.files import write_text

    out = options.out or RESULTS
    out.mkdir(parents=True, exist_ok=True)
    results = Results("make gpu-check" + " --rehearse" * options.rehearse)

    wanted = ["machine", *options.only.split(",")] if options.only else [*LIMITS]

    def target() -> Path:
        """Results of some parts do not replace those of all parts."""
        name = card_name(results) + f"-{options.only.replace(',', '-')}" * bool(options.only)
        return out / f"{name}.json"

    def keep() -> None:
        results.write(target())
        write_text(target().with_suffix(".md"), summary(results))

    with tempfile.TemporaryDirectory() as name:
        folder, longer = Path(name), max(1.0, options.minutes / MINUTES)
        groups = [
            [replace(part, limit=longer * part.limit) for part in group if part.name in wanted]
            for group in all_parts(folder, options.rehearse)
        ]
        run([group for group in groups if group], folder, options.minutes * 60, results, keep)
    print(summary(results))
    print(f"written: {target()} and {target().with_suffix('.md').name}")
    return int(any(part["outcome"].startswith("failed") for part in results.parts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
