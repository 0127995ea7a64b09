"""Endurance: kills, ranks that die and damaged checkpoints, many times over.

``make soak`` runs 50 kills, 20 rank deaths and 200 damaged checkpoints on a tiny run and prints one
table; the tests run a few. Every trial has to be hit by its fault, to go on from the checkpoint it
had, and to end in the same curve and weights, bit for bit, as a run that nothing happened to.
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.training import checkpoint
from tests.support.small_models import FRAME_FLAGS, SIZE_FLAGS

STEPS, LOGGED, SAVED = 100, 20, 3
"""Steps of a run, between its records, and between its checkpoints."""
ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    *SIZE_FLAGS, *FRAME_FLAGS, "--batch-size", "4", "--save-every", str(SAVED),
    "--stage", "pretrain", "--pretrain-clips", str(4 * STEPS), "--no-pictures",
    "--data", "cater:cater",
]  # fmt: skip


class Failure(Exception):
    """A trial that did not end as it has to, or whose fault did not strike."""


@dataclass(frozen=True)
class Whole:
    """The run that nothing happened to."""

    outcome: tuple[list, bytes]
    start_seconds: float
    """From its start to its first checkpoint."""
    save_seconds: float
    """From one checkpoint to the next."""


class Trials:
    """Runs of ``ivcl_fast.train`` in one folder, on ``ranks`` ranks."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.finish(self.start(f"first-{ranks}"))  # also makes the store
        begin = time.monotonic()
        name = f"whole-{ranks}"
        process = self.start(name)
        self.wait_for_checkpoint(1, name, process)
        trains = time.monotonic()
        self.finish(process)
        save_seconds = (time.monotonic() - trains) * SAVED / STEPS
        self.whole = Whole(outcome(self.run(name)), trains - begin, save_seconds)
        self.compare(self.run(f"first-{ranks}"), [])

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

    def kill(self, seed: int, name: str) -> str:
        """kill -9 at a random moment, then the same command again; what it hit."""
        process = self.start(name)
        moment = self.wait(seed, name, process)
        process.kill()
        said, _ = process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise Failure(f"ended before it was killed: {said}")
        kept = records_to_keep(self.run(name))
        self.finish(self.start(name))
        self.compare(self.run(name), kept)
        return moment

    def rank_death(self, seed: int, name: str) -> str:
        """kill -9 of one rank; torchrun starts all anew (even seeds) or ends (odd)."""
        restarts = 1 - seed % 2
        process = self.start(name, restarts)
        moment = self.wait(seed, name, process)
        os.kill(random.Random(seed).choice(self.wait_for_ranks(process)), signal.SIGKILL)
        kept = records_to_keep(self.run(name))
        said, _ = process.communicate()
        if "(exitcode: -9)" not in said:  # what torchrun says of it
            raise Failure(f"torchrun did not notice: {said}")
        if bool(process.returncode) == bool(restarts):
            raise Failure(f"exit status {process.returncode} with {restarts} restarts: {said}")
        if process.returncode:
            self.finish(self.start(name))
        self.compare(self.run(name), kept)
        return f"{moment}, {'restarted' if restarts else 'ended'}"

    def wait(self, seed: int, name: str, process: subprocess.Popen[str]) -> str:
        """Until a random moment: of start-up in one of five trials, of training in the others."""
        draw = random.Random(seed)
        if seed % 5:
            # After the first record, which is to show that the run went on and did not start anew.
            self.wait_for_checkpoint(draw.randint(LOGGED + 1, 9 * STEPS // 10), name, process)
            time.sleep(draw.uniform(0, self.whole.save_seconds))
            return "training"
        time.sleep(draw.uniform(0, self.whole.start_seconds))
        return "start-up"

    def wait_for_checkpoint(self, step: int, name: str, process: subprocess.Popen[str]) -> None:
        """Until ``step`` steps have been saved."""
        while saved(self.run(name)) < step:
            if process.poll() is not None:
                raise Failure(f"ended before step {step}: {process.communicate()[0]}")
            time.sleep(0.005)

    def wait_for_ranks(self, process: subprocess.Popen[str]) -> list[int]:
        """The processes of all ranks, as soon as torchrun has started them."""
        while len(ranks := children(process.pid)) < self.ranks:
            if process.poll() is not None:
                raise Failure(f"ended before its ranks were seen: {process.communicate()[0]}")
            time.sleep(0.005)
        return ranks

    def compare(self, run: Path, kept: list[str]) -> None:
        """Raises :class:`Failure` if a run differs from the whole one; else it is deleted.

        Its log has to begin with the very lines ``kept``, times included: those of a run that went
        on rather than start anew.
        """
        if lines(run)[: len(kept)] != kept:
            raise Failure("trained again what was saved")
        if outcome(run) != self.whole.outcome:
            raise Failure("another curve, or other weights")
        shutil.rmtree(run)


def saved(run: Path) -> int:
    """Steps in the newest checkpoint of a run; 0 if there is none."""
    steps = checkpoint.list_steps(run / "pretrain" / "checkpoints")
    return int(steps[-1].name.removeprefix("step-")) if steps else 0


def lines(run: Path) -> list[str]:
    """The whole lines of a run's log."""
    log = run / "metrics.jsonl"
    return [x for x in log.read_text().splitlines(True) if x.endswith("\n")] if log.exists() else []


def records_to_keep(run: Path) -> list[str]:
    """The lines of a run's log that its newest checkpoint makes final."""
    step = saved(run)
    return [line for line in lines(run) if json.loads(line)["step"] <= step]


def outcome(run: Path) -> tuple[list, bytes]:
    """The curve of a run, and its finished weights."""
    records = [json.loads(line) for line in lines(run)]
    curve = [(r["stage"], r["step"], r["loss"]) for r in records]
    if [step for _, step, _ in curve] != list(range(LOGGED, STEPS + 1, LOGGED)):
        raise Failure(f"not a curve of {STEPS} steps: {curve}")
    return curve, (run / "pretrain" / checkpoint.MODEL).read_bytes()


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started and that still run."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def damage(seed: int, folder: Path) -> str:
    """Flip a bit of a checkpoint's file, cut or remove it; what was done.

    One line has to name that checkpoint, and the one before has to be read.
    """
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
    with warnings_of("ivcl_fast.training.checkpoint") as said:
        found = checkpoint.latest(folder)
    if found is None or found.step != 1:
        raise Failure(f"{kind} of {file.name} was not found")
    if [line.partition(": ")[0] for line in said] != [
        f"checkpoint {file.parent} is damaged and passed over"
    ]:
        raise Failure(f"{kind} of {file.name} was not told in one line: {said}")
    shutil.rmtree(folder)
    return kind


@contextmanager
def warnings_of(logger: str) -> Iterator[list[str]]:
    """What a logger says in the block, in place of its being printed."""
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    logging.getLogger(logger).addFilter(keep)
    try:
        yield said
    finally:
        logging.getLogger(logger).removeFilter(keep)


@dataclass(frozen=True)
class Row:
    """What came of one kind of trial."""

    title: str
    struck: Counter[str]
    """Trials that ended as they have to, by what the fault hit."""
    failures: list[str]
    seconds: float

    def __str__(self) -> str:
        number = self.struck.total() + len(self.failures)
        struck = ", ".join(f"{self.struck[what]} {what}" for what in sorted(self.struck))
        return f"{self.title:20} {number:6} {len(self.failures):8} {self.seconds:6.0f} s  {struck}"


HEADER = f"{'trial':20} {'number':>6} {'failures':>8} {'time':>8}  what the faults hit"


def repeat(
    title: str, trial: Callable[[int, str], str], seeds: Sequence[int], jobs: int = 1
) -> Row:
    """Run a trial once for every seed, ``jobs`` at a time; failures are printed and counted."""
    begin = time.monotonic()
    failures: list[str] = []

    def attempt(seed: int) -> list[str]:
        try:
            return [trial(seed, f"{title.replace(' ', '-')}-{seed}")]
        except (Failure, OSError, ValueError) as failure:  # the others: no files to compare
            failures.append(f"{title}, seed {seed}: {failure}")
            print(f"  {failures[-1]}", flush=True)
            return []

    with ThreadPoolExecutor(jobs) as pool:
        struck = Counter(chain.from_iterable(pool.map(attempt, seeds)))
    return Row(title, struck, failures, time.monotonic() - begin)


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
        if asked.damages:
            rows.append(
                repeat(
                    "damaged checkpoint", lambda s, n: damage(s, folder / n), seeds(asked.damages)
                )
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
    main()
