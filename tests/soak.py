"""Endurance: kills, ranks that die and damaged checkpoints, many times over.

``make soak`` runs 50 kills, 20 rank deaths and 200 damaged checkpoints on a tiny run and prints one
table; the tests run a few. Every trial has to end in the same curve and weights, bit for bit, as a
run that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ivcl_fast import checkpoint
from ivcl_fast.data.synthetic.cater import SyntheticCater, write_cater

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--image-size", "16", "--embed-dim", "16", "--num-heads", "2", "--depth", "1",
    "--temporal-depth", "1", "--decoder-dim", "16", "--decoder-heads", "2", "--decoder-depth", "1",
    "--num-frames", "4", "--num-query-frames", "2", "--batch-size", "4", "--save-every", "3",
    "--stage", "pretrain", "--pretrain-clips", "400", "--no-pictures", "--data", "cater:cater",
]  # fmt: skip


class Failure(Exception):
    """A trial that did not end as it has to."""


@dataclass(frozen=True)
class Whole:
    """The run that nothing happened to."""

    folder: Path
    start_seconds: float
    """From its start to its first checkpoint."""
    training_seconds: float
    """From there to its finished model."""


class Trials:
    """Runs of ``ivcl_fast.train`` in one folder, on ``ranks`` ranks."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.finish(self.start(f"first-{ranks}"))  # also makes the store
        begin = time.monotonic()
        name = f"whole-{ranks}"
        process = self.start(name)
        self.wait_for_training(name, process)
        trains = time.monotonic()
        self.finish(process)
        self.whole = Whole(self.run(name), trains - begin, time.monotonic() - trains)
        self.compare(self.run(f"first-{ranks}"))

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def command(self, name: str, restarts: int = 0) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.2"]
        train = ["-m", "ivcl_fast.train", *FLAGS, "--name", name]
        return [sys.executable, *(launcher if self.ranks > 1 else []), *train]

    def start(self, name: str, restarts: int = 0) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.command(name, restarts),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def finish(self, process: subprocess.Popen[str]) -> None:
        said, _ = process.communicate()
        if process.returncode:
            raise Failure(f"exit status {process.returncode}: {said}")

    def kill(self, seed: int, name: str) -> bool:
        """kill -9 at a random moment, then the same command again; whether it hit training."""
        process = self.start(name)
        self.wait(seed, name, process)
        process.kill()
        process.communicate()
        struck = trains(self.run(name))
        self.finish(self.start(name))
        self.compare(self.run(name))
        return struck

    def rank_death(self, seed: int, name: str) -> bool:
        """kill -9 of one rank; torchrun starts all anew (even seeds) or ends (odd)."""
        restarts = 1 - seed % 2
        process = self.start(name, restarts)
        self.wait(seed, name, process)
        ranks = children(process.pid)
        if ranks:
            os.kill(random.Random(seed).choice(ranks), signal.SIGKILL)
        struck = bool(ranks) and trains(self.run(name))
        said, _ = process.communicate()
        if struck and "(exitcode: -9)" not in said:  # what torchrun says of it
            raise Failure(f"torchrun did not notice: {said}")
        if restarts and process.returncode:
            raise Failure(f"torchrun gave up: {said}")
        if process.returncode:
            self.finish(self.start(name))
        self.compare(self.run(name))
        return struck

    def wait_for_training(self, name: str, process: subprocess.Popen[str]) -> None:
        while not trains(self.run(name)):
            if process.poll() is not None:
                raise Failure(f"never trained: {process.communicate()[0][-2000:]}")
            time.sleep(0.005)

    def wait(self, seed: int, name: str, process: subprocess.Popen[str]) -> None:
        """Until a random moment: of start-up in one of five trials, of training in the others."""
        draw = random.Random(seed)
        if seed % 5:
            self.wait_for_training(name, process)
            time.sleep(draw.uniform(0, 0.9 * self.whole.training_seconds))
        else:
            time.sleep(draw.uniform(0, self.whole.start_seconds))

    def compare(self, run: Path) -> None:
        """Raises :class:`Failure` if a run differs from the whole one; else it is deleted."""
        if outcome(run) != outcome(self.whole.folder):
            raise Failure("another curve, or other weights")
        shutil.rmtree(run)


def trains(run: Path) -> bool:
    """Whether a run has left a checkpoint, but not yet its model."""
    folder = run / "pretrain"
    return (
        any(checkpoint.list_steps(folder / "checkpoints"))
        and not (folder / checkpoint.MODEL).exists()
    )


def outcome(run: Path) -> tuple[list, bytes]:
    """The curve of a run, and its finished weights."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [(r["stage"], r["step"], r["loss"]) for r in records]
    return curve, (run / "pretrain" / checkpoint.MODEL).read_bytes()


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started and that still run."""
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in text.read_text().split()] if text.exists() else []


def damage(seed: int, folder: Path) -> bool:
    """Flip a bit of a checkpoint's file, cut or remove it; it must be passed over for the last."""
    draw = random.Random(seed)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (1, 2):
        model(torch.ones(5)).sum().backward()
        optimizer.step()
        checkpoint.save(folder, step, model, [optimizer], {"pending_losses": [0.5]})
    file = draw.choice(sorted(checkpoint.list_steps(folder)[-1].iterdir()))
    data = bytearray(file.read_bytes())
    kind = draw.choice(["flip", "flip", "cut", "remove"])
    if kind == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
    file.unlink()
    if kind != "remove":
        file.write_bytes(data)
    found = checkpoint.latest(folder)
    if found is None or found.step != 1:
        raise Failure(f"{kind} of {file.name} was not found")
    shutil.rmtree(folder)
    return True


@dataclass(frozen=True)
class Row:
    """What came of one kind of trial."""

    title: str
    number: int
    struck: int
    """Trials whose fault came while training ran (or whose file was damaged)."""
    failures: list[str]
    seconds: float

    def __str__(self) -> str:
        counts = f"{self.number:6} {self.struck:6} {len(self.failures):8}"
        return f"{self.title:20} {counts} {self.seconds:6.0f} s"


HEADER = f"{'trial':20} {'number':>6} {'struck':>6} {'failures':>8} {'time':>8}"


def repeat(
    title: str, trial: Callable[[int, str], bool], seeds: Sequence[int], jobs: int = 1
) -> Row:
    """Run a trial once for every seed, ``jobs`` at a time; failures are printed and counted."""
    begin = time.monotonic()
    failures: list[str] = []

    def attempt(seed: int) -> bool:
        try:
            return trial(seed, f"{title.replace(' ', '-')}-{seed}")
        except Failure as failure:
            failures.append(f"{title}, seed {seed}: {failure}")
            print(f"  {failures[-1]}", flush=True)
            return False

    with ThreadPoolExecutor(jobs) as pool:
        struck = sum(pool.map(attempt, seeds))
    return Row(title, len(seeds), struck, failures, time.monotonic() - begin)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all trials, print the table, and exit with status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial of each kind")
    asked = parser.parse_args(arguments)

    def seeds(count: int) -> range:
        return range(asked.seed, asked.seed + count)

    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows.append(
            repeat("damaged checkpoint", lambda s, n: damage(s, folder / n), seeds(asked.damages))
        )
        if asked.kills or asked.deaths:
            write_cater(folder / "cater", SyntheticCater(train=12, val=6))
        if asked.kills:  # two at a time: each has one thread
            rows.append(repeat("kill -9", Trials(folder, 1).kill, seeds(asked.kills), jobs=2))
        if asked.deaths:
            trial = Trials(folder, 2).rank_death
            rows.append(repeat("death of one of 2", trial, seeds(asked.deaths)))
    print(HEADER, *rows, sep="\n")
    sys.exit(any(row.failures for row in rows))


if __name__ == "__main__":
    logging.getLogger("ivcl_fast").setLevel(logging.ERROR)  # every damage is told of
    main()
