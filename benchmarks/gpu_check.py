"""``make gpu-check``: measure and test everything that needs an NVIDIA GPU, in 25 minutes.

First come the speeds of a training step, eager and as a CUDA graph, then ops and attention against
their baselines, a profile, compiled steps, the comparison with the reference's weights, a search
for races, other models, whole runs and the tests marked ``gpu``. ``--minutes 9`` is a short form in
which each part has less time. Nothing is installed or built: torch, Triton, NumPy and a few small
packages suffice. What needs PyAV, DALI, timm, flash-attn or Liger is skipped without it.

Every part is a separate process with a time limit, plus the time left over by earlier parts. A part
that fails or hangs loses only its remaining measurements. After every part the results are written
to ``<card>.json`` and ``<card>.md``, and the logs and rows of the parts to the folder ``<card>``,
with the clocks and the power of the GPU in ``gpu.csv``. The exit status is 0, or 1 if a part
failed, or 2 if nothing can be measured on this machine.
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
from collections.abc import Iterator, Sequence
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
    "loaders": 1.5, "train": 1.0, "accelerate": 1.0, "tests": 3.0, "large": 0.5,
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
    "python -m benchmarks.gpu_parts speed speed.jsonl",
    "ncu --set full --kernel-name regex:short_attention --launch-skip 8 --launch-count 4 "
    "--output attention python -m benchmarks.gpu_parts attention attention.jsonl",
)
"""Commands for a time line of the steps and for the limits of single kernels. They exclude the
profiler of the part ``profile``, so they run other parts."""
GPU_STATE = "timestamp,clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active"
RACES = ("tests/kernels/ops/test_races.py",)
PARITY = ("tests/kernels/test_on_gpu.py", "tests/training/test_step_graph.py")
"""Tests of whole models against the reference, and of recorded and compiled steps."""
TESTS_PER_FUNCTION = "8"


def run(
    commands: dict[str, Sequence[str]], minutes: dict[str, float], results: Results, folder: Path
) -> None:
    """Run parts one after the other, and write the results and the page after each."""
    deadline = time.monotonic()
    for name, command in commands.items():
        deadline += 60 * minutes[name]
        begin, file = time.monotonic(), RowFile(folder / f"{name}.jsonl")
        file.file.write_text("")
        status = run_process(command, folder / f"{name}.log", deadline - begin)
        rows = file.read()
        said = outcome(status, rows, read_log(folder, name))
        taken = round(time.monotonic() - begin, 1)
        results.parts[name] = {"outcome": said, "seconds": taken}
        if name == "machine" and said == "ok":
            results.machine = rows[0]
        else:
            results.rows += [{"part": name, **row} for row in rows]
        print(f"{name}: {said}, {taken} s", flush=True)
        if said.startswith(("failed", "stopped")):
            print(f"  log: {folder / name}.log\n  {repeat(name)}", flush=True)
        results.write(folder.with_suffix(".json"))
        folder.with_suffix(".md").write_text(page(results, folder))


def run_process(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """Run a command and then end its children; return its exit status, None after a timeout."""
    environment = os.environ | {"IVCL_FAST_TESTS_PER_FUNCTION": TESTS_PER_FUNCTION}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_log(folder: Path, name: str) -> str:
    return (folder / f"{name}.log").read_text(errors="replace")


def outcome(status: int | None, rows: list[Row], log: str) -> str:
    """Return "ok", or "skipped", "stopped" or "failed" with the reason."""
    last = (log.strip().splitlines() or ["no output"])[-1].strip()[:300]
    if failed := [row for row in rows if "error" in row]:
        return f"failed: {len(failed)} of {len(rows)} measurements"
    if status is None:
        return f"stopped: timeout after {len(rows)} measurements"
    if status:
        return f"failed: exit status {status}; {last}"
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    return f"skipped: {skipped[0]}" if rows and len(skipped) == len(rows) else "ok"


def repeat(name: str) -> str:
    """Describe how to run a part alone."""
    return f'repeat: make gpu-check ARGS="--only {name}"; switches to try: {SWITCHES}'


def all_commands(folder: Path, rehearse: bool) -> dict[str, Sequence[str]]:
    """Return the command of each part."""
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "addopts="]
    tests = [*pytest, "-p", "tests.support.thin", *test_files()]
    # Most of their time is compiling.
    processes = ["-n", str(min(8, max(1, (os.cpu_count() or 1) // 2)))]
    earlier = [f"--ignore={file}" for file in (*PARITY, *RACES)]
    module, flags = [sys.executable, "-m", "benchmarks.gpu_parts"], ["--rehearse"] * rehearse
    return {name: [*module, name, f"{folder}/{name}.jsonl", *flags] for name in MINUTES} | {
        "parity": [*pytest, "-m", "gpu and not large", *PARITY, *processes],
        "races": [*pytest, "-m", "gpu", *RACES],
        "tests": [*tests, "-m", "gpu and not large", *earlier, *processes],
        "large": [*tests, "-m", "gpu and large"],
    }


def test_files() -> list[str]:
    """Return the folders of tests whose imports are installed."""
    paths = ["tests/kernels"]
    if all(map(find_spec, ("av", "pebble", "tyro", "jinja2", "tensorboard", "PIL"))):
        paths += ["tests/training", "tests/data"]
    return paths


def page(results: Results, folder: Path) -> str:
    """Return a page about a card: what ran, and every table."""
    from benchmarks.tables import describe_machine, table
    from ivcl_fast.text import markdown_table

    lines = [f"# {results.machine.get('device', 'Unknown card')}", ""]
    lines += [f"`{results.command}`, {results.date}.", ""]
    if "--rehearse" in results.command:
        lines += ["Tiny sizes, to test that every part runs: the figures are meaningless.", ""]
    if "ceilings" in results.machine:
        lines += [describe_machine(results.machine), ""]
    parts = [
        (name, part["outcome"], f"{part['seconds']:.0f}") for name, part in results.parts.items()
    ]
    lines += [*markdown_table(("part", "outcome", "seconds"), parts), ""]
    lines += targets(results)
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
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for results (%(default)s)"
    )
    parser.add_argument("--only", default="", help="comma-separated names of parts to run")
    parser.add_argument(
        "--minutes", type=float, default=sum(MINUTES.values()),
        help="time limit of all parts (%(default)s); with --only, of each part",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true",
        help="tiny sizes, also on a CPU, to test that every part runs",
    )  # fmt: skip
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    if unknown := {*only} - {*MINUTES}:
        parser.error(f"--only: expected {', '.join(MINUTES)}, got {', '.join(sorted(unknown))}")
    if reason := missing(options.rehearse):
        print(f"error: gpu-check: {reason}", file=sys.stderr)
        return 2
    from benchmarks.machine import gpu_query

    card = re.sub(r"[^a-z0-9]+", "-", gpu_query("name").lower()).strip("-") or "unknown-card"
    card += f"-{options.only.replace(',', '-')}" * bool(only)  # does not replace all parts
    folder = (options.out / card).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results = Results("make gpu-check" + " --rehearse" * options.rehearse)
    scale = options.minutes / sum(MINUTES.values())
    minutes = {name: options.minutes if only else scale * of for name, of in MINUTES.items()}
    commands = all_commands(folder, options.rehearse)
    chosen = {name: commands[name] for name in MINUTES if name in ("machine", *(only or MINUTES))}
    with watched(folder / "gpu.csv"):
        run(chosen, minutes, results, folder)
    print(page(results, folder))
    print(f"written: {folder.with_suffix('.json')} and {folder.with_suffix('.md').name}")
    return int(any(part["outcome"].startswith("failed") for part in results.parts.values()))


@contextlib.contextmanager
def watched(file: Path) -> Iterator[None]:
    """Write the state of the GPU to ``file`` every five seconds."""
    command = ["nvidia-smi", f"--query-gpu={GPU_STATE}", "--format=csv", "-l", "5", "-f", str(file)]
    try:
        process = subprocess.Popen(command)
    except OSError:  # a rehearsal
        yield
        return
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
