"""Endurance: kills, dead ranks and damaged checkpoints, many times over.

``make soak`` runs 50 kills, 20 deaths of a rank and 200 damaged checkpoints on a tiny run, and
prints one table; the tests run a few. In every trial the fault has to strike, the run has to
continue from the checkpoint that it had, and its curve and weights have to equal, bit for bit,
those of an undisturbed run.
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
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.models.weights import MODEL
from ivcl_fast.training import checkpoint
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

STEPS, LOGGED, SAVED = 100, 20, 3
"""Steps of a run, between its records, and between its checkpoints."""
ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    *RUN_FLAGS, *FRAME_FLAGS, "--save-every", str(SAVED), "--stage", "pretrain",
    "--pretrain-clips", str(4 * STEPS), "--no-pictures", "--data", "cater:cater",
]  # fmt: skip


class Failure(Exception):
    """A trial did not end as it has to, or its fault did not strike."""


class Trials:
    """Runs of ``ivcl_fast.train`` in one folder, with ``ranks`` ranks."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.finish(self.start(f"first-{ranks}"))  # this also makes the frame store
        begin = time.monotonic()
        name = f"undisturbed-{ranks}"
        process = self.start(name)
        self.wait_for_checkpoint(1, name, process)
        first_checkpoint = time.monotonic()
        self.finish(process)
        self.start_seconds = first_checkpoint - begin
        self.save_seconds = (time.monotonic() - first_checkpoint) * SAVED / STEPS
        self.expected = outcome(self.run(name))
        self.compare(self.run(f"first-{ranks}"), [])

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def start(self, name: str, restarts: int = 0) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.2"]
        train = ["-m", "ivcl_fast.train", *FLAGS, "--name", name]
        return subprocess.Popen(
            [sys.executable, *(launcher if self.ranks > 1 else []), *train],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def finish(self, process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate()
        if process.returncode:
            raise Failure(f"exit status {process.returncode}: {output}")

    def kill(self, seed: int, name: str) -> str:
        """Kill a run at a random moment, then start it again; return when the kill came."""
        process = self.start(name)
        moment = self.wait(seed, name, process)
        process.kill()
        output, _ = process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise Failure(f"ended before it was killed: {output}")
        kept = final_records(self.run(name))
        self.finish(self.start(name))
        self.compare(self.run(name), kept)
        return moment

    def kill_rank(self, seed: int, name: str) -> str:
        """Kill one rank; torchrun restarts all of them (even seeds), or ends the run (odd)."""
        restarts = 1 - seed % 2
        process = self.start(name, restarts)
        moment = self.wait(seed, name, process)
        os.kill(random.Random(seed).choice(self.wait_for_ranks(process)), signal.SIGKILL)
        kept = final_records(self.run(name))
        output, _ = process.communicate()
        if "(exitcode: -9)" not in output:  # torchrun prints this
            raise Failure(f"torchrun did not notice: {output}")
        if bool(process.returncode) == bool(restarts):
            raise Failure(f"exit status {process.returncode} with {restarts} restarts: {output}")
        if process.returncode:
            self.finish(self.start(name))
        self.compare(self.run(name), kept)
        return f"{moment}, {'restarted' if restarts else 'ended'}"

    def wait(self, seed: int, name: str, process: subprocess.Popen[str]) -> str:
        """Wait for a random moment: of start-up in one of five trials, else of training."""
        draw = random.Random(seed)
        if seed % 5:
            # After the first record, which shows later that the run continued instead of starting
            # again.
            self.wait_for_checkpoint(draw.randint(LOGGED + 1, 9 * STEPS // 10), name, process)
            time.sleep(draw.uniform(0, self.save_seconds))
            return "training"
        time.sleep(draw.uniform(0, self.start_seconds))
        return "start-up"

    def wait_for_checkpoint(self, step: int, name: str, process: subprocess.Popen[str]) -> None:
        """Wait until ``step`` steps have been saved."""
        while saved_steps(self.run(name)) < step:
            self.check_running(process)

    def wait_for_ranks(self, process: subprocess.Popen[str]) -> list[int]:
        """Wait until torchrun has started all ranks; return their process ids."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(ranks := children.read_text().split()) < self.ranks:
            self.check_running(process)
        return list(map(int, ranks))

    def check_running(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is not None:
            raise Failure(f"ended before the fault: {process.communicate()[0]}")
        time.sleep(0.005)

    def compare(self, run: Path, kept: list[str]) -> None:
        """Raise :class:`Failure` if a run differs from the undisturbed one; else delete it.

        Its log has to begin with exactly the lines ``kept``, times included, unless it was
        trained from the start again.
        """
        if lines(run)[: len(kept)] != kept:
            raise Failure("steps that were saved were trained again")
        if outcome(run) != self.expected:
            raise Failure("another curve, or other weights")
        shutil.rmtree(run)


def saved_steps(run: Path) -> int:
    """Steps in the newest checkpoint of a run; 0 if there is none."""
    steps = checkpoint.list_steps(run / "pretrain" / "checkpoints")
    return int(steps[-1].name.removeprefix("step-")) if steps else 0


def lines(run: Path) -> list[str]:
    """The complete lines of a run's log."""
    log = run / "metrics.jsonl"
    return [x for x in log.read_text().splitlines(True) if x.endswith("\n")] if log.exists() else []


def final_records(run: Path) -> list[str]:
    """The lines of a run's log up to its newest checkpoint."""
    step = saved_steps(run)
    return [line for line in lines(run) if json.loads(line)["step"] <= step]


def outcome(run: Path) -> tuple[list, bytes]:
    """The curve of a run, and its finished weights."""
    records = [json.loads(line) for line in lines(run)]
    curve = [(r["stage"], r["step"], r["loss"]) for r in records]
    if [step for _, step, _ in curve] != list(range(LOGGED, STEPS + 1, LOGGED)):
        raise Failure(f"not a curve of {STEPS} steps: {curve}")
    return curve, (run / "pretrain" / MODEL).read_bytes()


def damage(seed: int, folder: Path) -> str:
    """Flip a bit of a checkpoint's file, or cut or remove the file; return what was done.

    One line has to name that checkpoint, and the one before has to be read.
    """
    draw = random.Random(seed)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (1, 2):
        model(torch.ones(5)).sum().backward()
        optimizer.step()
        saved = checkpoint.snapshot(step, model, [optimizer], {"pending_losses": [0.5]})
        checkpoint.store(folder, saved)
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
    with captured_warnings("ivcl_fast.training.checkpoint") as warnings:
        found = checkpoint.latest(folder)
    if found is None or found.step != 1:
        raise Failure(f"{kind} of {file.name} was not found")
    if len(warnings) != 1 or f"{file.parent} is damaged" not in warnings[0]:
        raise Failure(f"{kind} of {file.name} was not reported in one line: {warnings}")
    shutil.rmtree(folder)
    return kind


@contextmanager
def captured_warnings(logger: str) -> Iterator[list[str]]:
    """Collect the messages of a logger instead of printing them."""
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logging.getLogger(logger).addFilter(keep)
    try:
        yield messages
    finally:
        logging.getLogger(logger).removeFilter(keep)


def repeat(
    title: str, trial: Callable[[int, str], str], seeds: Sequence[int], jobs: int = 1
) -> tuple[str, int]:
    """Run a trial for every seed, ``jobs`` at a time; return a row of the table, and the failures.

    Failures are printed when they occur.
    """
    begin = time.monotonic()

    def attempt(seed: int) -> list[str]:
        try:
            return [trial(seed, f"{title.replace(' ', '-')}-{seed}")]
        except (Failure, OSError, ValueError) as failure:  # the latter two: files are missing
            print(f"  {title}, seed {seed}: {failure}", flush=True)
            return []

    with ThreadPoolExecutor(jobs) as pool:
        struck = Counter(chain.from_iterable(pool.map(attempt, seeds)))
    failures = len(seeds) - struck.total()
    hits = ", ".join(f"{struck[what]} {what}" for what in sorted(struck))
    seconds = time.monotonic() - begin
    return f"{title:20} {len(seeds):6} {failures:8} {seconds:6.0f} s  {hits}", failures


HEADER = f"{'trial':20} {'number':>6} {'failures':>8} {'time':>8}  when or how the fault struck"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all trials, print the table, and exit with status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial of each kind")
    flags = parser.parse_args(arguments)

    def seeds(count: int) -> range:
        return range(flags.seed, flags.seed + count)

    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if flags.damages:
            trial = lambda seed, name: damage(seed, folder / name)  # noqa: E731
            rows.append(repeat("damaged checkpoint", trial, seeds(flags.damages)))
        if flags.kills or flags.deaths:
            write_cater(folder / "cater", SyntheticCater(train=12, val=6))
        if flags.kills:  # two at a time: each has one thread
            rows.append(repeat("kill -9", Trials(folder, 1).kill, seeds(flags.kills), jobs=2))
        if flags.deaths:
            trial = Trials(folder, 2).kill_rank
            rows.append(repeat("death of one of 2", trial, seeds(flags.deaths)))
    print(HEADER, *(row for row, _ in rows), sep="\n")
    sys.exit(any(failures for _, failures in rows))


if __name__ == "__main__":
    main()
