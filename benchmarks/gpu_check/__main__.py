"""``make gpu-check``: measure and test everything that needs an NVIDIA GPU, in 25 minutes.

First come the speeds of a training step, eager and as a CUDA graph, then ops and attention against
their baselines, a profile, compiled steps, the comparison with the reference's weights, a search
for races, other models, whole runs and the tests marked ``gpu``. ``--minutes 9`` is a short form in
which each part has less time. Nothing is installed or built: torch, Triton, NumPy and a few small
packages suffice. What needs PyAV, DALI, timm, transformers, flash-attn, Liger or a second GPU is
skipped without it.

Every part is a separate process with a time limit, plus the time left over by earlier parts. A part
that fails or hangs loses only its remaining measurements. After every part the results are written
to ``<card>.json`` and ``<card>.md``, and the logs and rows of the parts to the folder ``<card>``.
The exit status is 0, or 1 if a part failed, or 2 if nothing can be measured on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.results import RESULTS, ROOT, Results, Row, RowFile

NEEDS = (
    "torch", "triton", "numpy", "einops", "safetensors", "huggingface_hub", "rich", "pytest",
    "xdist",
)  # fmt: skip
"""Packages that models, trainer and tests import."""
MINUTES = {
    "machine": 0.5, "speed": 2.5, "kernels": 2.0, "attention": 2.0, "profile": 0.5,
    "compiled": 2.5, "parity": 1.5, "races": 1.5, "base64": 2.0, "base224": 1.5, "mae": 1.5,
    "loaders": 1.5, "train": 1.0, "ranks": 1.0, "accelerate": 1.0, "tests": 2.0, "large": 0.5,
}  # fmt: skip
"""Time limit of each part in minutes, in order."""
TARGETS = {256: 2400, 88: 1900}
"""Target clips/s of the trainer's ``base64`` step on an H100, by batch size."""
BOUND = 3212
"""Clips/s of this step if its matrix products ran at 700 TFLOP/s on an H100."""
SWITCHES = "IVCL_FAST_TRITON=0, TORCH_COMPILE_DISABLE=1, CUDA_LAUNCH_BLOCKING=1"
"""Environment variables for locating a fault."""
PROFILERS = (
    "nsys profile --cuda-graph-trace=node --output step "
    "python -m benchmarks.gpu_check.parts speed speed.jsonl",
    "ncu --set full --kernel-name regex:short_attention --launch-skip 8 --launch-count 4 "
    "--output attention python -m benchmarks.gpu_check.parts attention attention.jsonl",
)
"""Commands for a time line of the steps and for the limits of single kernels. They exclude the
profiler of the part ``profile``, so they run other parts."""
GPU_STATE = "clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active"
RACES = ("tests/kernels/ops/test_races.py",)
PARITY = ("tests/kernels/test_on_gpu.py", "tests/training/test_step_graph.py")
"""Tests of whole models against the reference, and of recorded and compiled steps."""
TEST_PROCESSES = 8
TESTS_PER_FUNCTION = "8"


@dataclass
class Part:
    """A command that may append rows of JSON to a file."""

    name: str
    command: Sequence[str]
    minutes: float
    environment: dict[str, str] = field(default_factory=dict)


def run(
    parts: Sequence[Part],
    folder: Path,
    results: Results,
    keep: Callable[[], None],
    sample: Callable[[], str] = lambda: "",
) -> None:
    """Run parts one after the other, add their rows to ``results``, and call ``keep`` after each.

    Writes logs and rows to ``folder``. ``sample`` returns the state of the GPU and is called every
    five seconds.
    """
    deadline = time.monotonic()
    for part in parts:
        deadline += 60 * part.minutes
        begin = time.monotonic()
        status, states = run_process(part, folder, deadline, sample)
        rows = rows_of(part, folder)
        said = outcome(status, rows, read_log(folder, part.name))
        taken = round(time.monotonic() - begin, 1)
        results.parts[part.name] = {"outcome": said, "seconds": taken, "gpu": states}
        if part.name == "machine" and said == "ok":
            results.machine = rows[0]
        else:
            results.rows += [{"part": part.name, **row} for row in rows]
        print(f"{part.name}: {said}, {taken} s", flush=True)
        if said.startswith(("failed", "stopped")):
            print(f"  log: {folder / part.name}.log\n  {repeat(part.name)}", flush=True)
        keep()


def run_process(
    part: Part, folder: Path, deadline: float, sample: Callable[[], str]
) -> tuple[int | None, list[str]]:
    """Run a part; return its exit status (None after a timeout) and states of the GPU."""
    RowFile(folder / f"{part.name}.jsonl").file.write_text("")
    states: list[str] = []
    with open(folder / f"{part.name}.log", "wb") as log:
        process = subprocess.Popen(
            [*part.command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=os.environ | part.environment,
            start_new_session=True,  # to end its children with it
        )  # fmt: skip
    try:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(5.0, max(0.1, deadline - time.monotonic())))
            states += [state] if (state := sample()) and state not in states else []
        return process.poll(), states
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rows_of(part: Part, folder: Path) -> list[Row]:
    return RowFile(folder / f"{part.name}.jsonl").read()


def read_log(folder: Path, name: str) -> str:
    return (folder / f"{name}.log").read_text(errors="replace")


def outcome(status: int | None, rows: list[Row], log: str) -> str:
    """Return "ok", or "skipped", "stopped" or "failed" with the reason."""
    last = (log.strip().splitlines() or ["no output"])[-1].strip()[:300]
    if failed := [row for row in rows if "error" in row]:
        return f"failed: {len(failed)} of {len(rows)} measurements"
    if status is None:
        return f"stopped: timeout after {len(rows)} measurements"
    if status < 0:
        return f"failed: killed by {signal.Signals(-status).name}; {last}"
    if status:
        return f"failed: exit status {status}; {last}"
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    return f"skipped: {skipped[0]}" if rows and len(skipped) == len(rows) else "ok"


def repeat(name: str) -> str:
    """Describe how to run a part alone."""
    return f'repeat: make gpu-check ARGS="--only {name}"; switches to try: {SWITCHES}'


def all_parts(folder: Path, minutes: float, only: Sequence[str], rehearse: bool) -> list[Part]:
    """Return the parts; all of them together have ``minutes``."""
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "addopts="]
    tests = [*pytest, "-p", "benchmarks.gpu_check.thin", *test_files()]
    # Most of their time is compiling.
    processes = ["-n", str(min(TEST_PROCESSES, max(1, (os.cpu_count() or 1) // 2)))]
    earlier = [f"--ignore={file}" for file in (*PARITY, *RACES)]
    commands = {
        "parity": [*pytest, "-m", "gpu and not large", *PARITY, *processes],
        "races": [*pytest, "-m", "gpu", *RACES],
        "tests": [*tests, "-m", "gpu and not large", *earlier, *processes],
        "large": [*tests, "-m", "gpu and large"],
    }
    scale = minutes / sum(MINUTES.values())
    environment = {"IVCL_FAST_TESTS_PER_FUNCTION": TESTS_PER_FUNCTION}
    parts = []
    for name in [name for name in MINUTES if name in only or not only or name == "machine"]:
        module = [sys.executable, "-m", "benchmarks.gpu_check.parts", name]
        measured = [*module, f"{folder}/{name}.jsonl", *["--rehearse"] * rehearse]
        limit = minutes if only else scale * MINUTES[name]
        parts.append(Part(name, commands.get(name, measured), limit, environment))
    return parts


def test_files() -> list[str]:
    """Return the folders of tests whose imports are installed."""
    # This file has optional imports, and its tests are for the interpreter.
    paths = ["tests/kernels", "--ignore=tests/kernels/ops/test_memory_access.py"]
    if all(map(find_spec, ("av", "pebble", "tyro", "jinja2", "tensorboard", "PIL"))):
        paths += ["tests/training", "tests/data"]
    return paths


# --- The page -------------------------------------------------------------------------------------


def page(results: Results, folder: Path) -> str:
    """Return a page about a card: what ran, the targets, and every table."""
    from benchmarks.tables import describe_machine, lined_up, table

    lines = [f"# {results.machine.get('device', 'Unknown card')}", ""]
    lines += [f"`{results.command}`, {results.date}.", ""]
    if "--rehearse" in results.command:
        lines += ["Tiny sizes, to test that every part runs: the figures are meaningless.", ""]
    if "ceilings" in results.machine:
        lines += [describe_machine(results.machine), ""]
    head = ("part", "outcome", "seconds", "GPU: clock, power, temperature, throttling")
    lines += lined_up(
        head,
        (
            (name, part["outcome"], f"{part['seconds']:.0f}", (part["gpu"] or [""])[-1])
            for name, part in results.parts.items()
        ),
    )
    lines += ["", *targets(results)]
    for name, part in results.parts.items():
        rows = [row for row in results.rows if row["part"] == name]
        found = [*table(rows, results.machine), "", *notes(rows)]
        if part["outcome"].startswith(("failed", "stopped")):
            log = read_log(folder, name).splitlines()
            found += [f"- `{line.strip()}`" for line in log if "FAILED" in line][:50]
            found += [f"- Log: `{folder.name}/{name}.log`; {repeat(name)}"]
        if name == "profile":
            found += ["More detail:", "", "```console", *PROFILERS, "```"]
        if any(found):
            lines += [f"## {name}", "", *found, ""]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines).rstrip() + "\n")


def targets(results: Results) -> Iterator[str]:
    """Yield the speeds with a target for an H100."""
    if "H100" not in results.machine.get("device", ""):
        return
    for clips, least in TARGETS.items():
        rows = [row for row in results.rows if row.get("count") == clips and "seconds" in row]
        if speeds := [clips / r["seconds"] for r in rows if r["part"] in ("speed", "compiled")]:
            yield f"- {clips} clips: {max(speeds):,.0f} clips/s, target {least:,}, bound {BOUND:,}"
    yield ""


def notes(rows: list[Row]) -> Iterator[str]:
    """Yield comparisons without times, and the reasons for missing rows."""
    for row in rows:
        what = ", ".join(row[key] for key in ("benchmark", "name") if key in row)
        if reason := row.get("error") or row.get("skipped"):
            yield f"- {what}: {reason}".replace("- : ", "- ")
        elif "difference" in row and "seconds" not in row:
            yield f"- {what}: the difference is {row['difference']:.2g}"


# --- The command ----------------------------------------------------------------------------------


def missing(rehearse: bool) -> str | None:
    """Return why nothing can be measured on this machine, or None."""
    if lacking := [name for name in NEEDS if find_spec(name) is None]:
        return f"{sys.executable} lacks {', '.join(lacking)}"
    import torch

    if not rehearse and not torch.cuda.is_available():
        built = "" if torch.version.cuda else ", which is built without CUDA"
        return f"no NVIDIA GPU is visible to torch {torch.__version__}{built}"
    return None


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="make gpu-check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help=f"folder for results ({RESULTS})")
    parser.add_argument("--only", default="", help="comma-separated names of parts to run")
    parser.add_argument(
        "--minutes", type=float, default=sum(MINUTES.values()),
        help="time limit of all parts (%(default)s); with --only, of each part",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true",
        help="tiny sizes, also on a CPU, to test that every part runs; needs --out",
    )  # fmt: skip
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    if unknown := {*only} - {*MINUTES}:
        parser.error(f"--only: expected {', '.join(MINUTES)}, got {', '.join(sorted(unknown))}")
    if options.rehearse and options.out is None:
        parser.error("--rehearse: expected --out with a folder for its figures, got none")
    if reason := missing(options.rehearse):
        print(f"error: gpu-check: {reason}", file=sys.stderr)
        return 2
    from benchmarks.machine import gpu_query

    card = re.sub(r"[^a-z0-9]+", "-", gpu_query("name").lower()).strip("-") or "unknown-card"
    card += f"-{options.only.replace(',', '-')}" * bool(only)  # does not replace all parts
    folder = (options.out or RESULTS).absolute() / card
    folder.mkdir(parents=True, exist_ok=True)
    results = Results("make gpu-check" + " --rehearse" * options.rehearse)

    def keep() -> None:
        results.write(folder.with_suffix(".json"))
        folder.with_suffix(".md").write_text(page(results, folder))

    parts = all_parts(folder, options.minutes, only, options.rehearse)
    run(parts, folder, results, keep, lambda: gpu_query(GPU_STATE))
    print(page(results, folder))
    print(f"written: {folder.with_suffix('.json')} and {folder.with_suffix('.md').name}")
    return int(any(part["outcome"].startswith("failed") for part in results.parts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
