"""``python -m benchmarks.zoo``: run ``accelerate`` on all public models and write one file.

Each package version runs in a process of its own. ``--install`` gets the versions first.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.results import RESULTS, ROOT, Results, Row, RowFile, read
from benchmarks.zoo.catalogue import GRIDS, Model, models
from benchmarks.zoo.environments import FOLDER, PACKAGES, install, variables
from benchmarks.zoo.measure import MODES
from ivcl_fast.command import run_command
from ivcl_fast.errors import UserError

OUT = RESULTS / "zoo.json"
STARTING = 5.0
"""Seconds for the imports of an environment."""


def chosen(words: Sequence[str]) -> list[Model]:
    """Return the models whose environment or name contains one of the words, or all.

    Raises :class:`UserError` if there are none.
    """
    found = [
        m for m in models() if not words or any(w in f"{m.environment} {m.title}" for w in words)
    ]
    if not found:
        raise UserError(f"--models: no model contains any of {', '.join(words)}")
    return found


def merged(new: Sequence[Row], out: Path) -> list[Row]:
    """Return the rows of a file with the new ones in their places, in the catalogue's order.

    Races at other numbers of tokens than the new ones are kept.
    """
    before = read(out).rows if out.exists() else []
    by_model = {(row["environment"], row["name"]): row for row in before}
    for row in new:
        old = by_model.get(key := (row["environment"], row["name"]), {})
        lengths = {mode: old.get(mode, {}) | row[mode] for mode in MODES if mode in row}
        by_model[key] = row | lengths
    order = [(m.environment, m.title) for m in models()]
    return [by_model[key] for key in order if key in by_model]


def command_of(flags: argparse.Namespace) -> str:
    """Return the command with the flags that decide what is measured."""
    words = ["--minutes", f"{flags.minutes:g}", "--rounds", str(flags.rounds)]
    if flags.tokens != list(GRIDS):
        words += ["--tokens", *map(str, flags.tokens)]
    if flags.models:
        words += ["--models", *flags.models]
    return shlex.join(["python", "-m", "benchmarks.zoo", *words])


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[], metavar="PART", help="part of a name")
    parser.add_argument("--minutes", type=float, default=15, help="time for all that are chosen")
    parser.add_argument("--rounds", type=int, default=25, help="most rounds of a race; 0: none")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--environments", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--install", action="store_true", help="install missing package versions")
    parser.add_argument("--out", type=Path, default=OUT)
    flags = parser.parse_args()
    if flags.install:
        install(flags.environments)
    entries = chosen(flags.models)
    results = Results(command_of(flags), machine=machine.describe())
    rows: list[Row] = []
    begin = time.monotonic()
    for name in PACKAGES:
        titles = [entry.title for entry in entries if entry.environment == name]
        if titles:
            left = 60 * flags.minutes - (time.monotonic() - begin)
            share = left * len(titles) / (len(entries) - len(rows))
            rows += measured(name, titles, share - STARTING, flags)
            print(f"{name}: {len(titles)} models, {time.monotonic() - begin:.0f} s", flush=True)
    failed = [
        f"{row['environment']} {row['name']}: {row['error']}" for row in rows if "error" in row
    ]
    results.rows = merged(rows, flags.out)
    results.write(flags.out)
    print("\n".join([*failed, f"written: {flags.out}, {len(rows)} rows, {len(failed)} failed"]))
    sys.exit(bool(failed))


def measured(name: str, titles: list[str], seconds: float, flags: argparse.Namespace) -> list[Row]:
    """Measure the models of one environment in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.touch()
        command = [sys.executable, "-m", "benchmarks.zoo.measure", name, str(file)]
        command += ["--models", *titles, "--tokens", *map(str, flags.tokens)]
        command += ["--seconds", f"{seconds:.3f}", "--rounds", str(flags.rounds)]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        environment = variables(name, flags.environments) | threads
        done = subprocess.run(command, cwd=ROOT, env=environment)
        rows = RowFile(file).read()
    for title in titles[len(rows) :]:
        error = f"the process ended with status {done.returncode}"
        rows.append({"benchmark": "zoo", "name": title, "environment": name, "error": error})
    return rows


if __name__ == "__main__":
    run_command(main)
