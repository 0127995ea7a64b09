"""Endurance: kills, ranks that die and damaged checkpoints, many times over.

``make soak`` runs 50 kills, 20 rank deaths and 200 damaged checkpoints on a tiny run and prints one
table; the tests run a few. Every trial has to end in the same curve and weights, bit for bit, as a
run that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
    "--stage", "pretrain", "--pretrain-clips", "320", "--data", "cater:cater",
]  # fmt: skip


class Failure(Exception):
    """A trial that did not end as it has to."""


class Trials:
    """Runs of ``ivcl_fast.train`` in one folder, on ``ranks`` ranks."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.reference = f"whole-{ranks}"
        started = self.start(self.reference)
        self._wait_for_training(self.reference, started)
        begin = time.monotonic()
        self.finish(started)
        self.seconds = time.monotonic() - begin
        """What training takes, and the pictures after it."""

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
            raise Failure(f"exit status {process.returncode}: {said[-2000:]}")

    def kill(self, seed: int, name: str) -> bool:
        """kill -9 at a random moment, then the same command again; whether it hit in time."""
        process = self.start(name)
        self._wait(seed, name, process)
        hit = process.poll() is None
        process.kill()
        process.communicate()
        self.finish(self.start(name))
        self._compare(name)
        return hit

    def rank_death(self, seed: int, name: str) -> bool:
        """kill -9 of one rank; torchrun starts all anew (even seeds) or ends (odd)."""
        restarts = 1 - seed % 2
        process = self.start(name, restarts)
        self._wait(seed, name, process)
        ranks = children(process.pid)
        if ranks:
            os.kill(random.Random(seed).choice(ranks), signal.SIGKILL)
        said, _ = process.communicate()
        if restarts and process.returncode:
            raise Failure(f"torchrun gave up: {said[-2000:]}")
        if process.returncode:
            self.finish(self.start(name))
        self._compare(name)
        return "(exitcode: -9)" in said  # what torchrun says of it

    def _wait_for_training(self, name: str, process: subprocess.Popen[str]) -> None:
        while not (self.folder / "runs" / name / "config.json").exists():
            if process.poll() is not None:
                raise Failure(f"never began: {process.communicate()[0][-2000:]}")
            time.sleep(0.005)

    def _wait(self, seed: int, name: str, process: subprocess.Popen[str]) -> None:
        self._wait_for_training(name, process)
        time.sleep(random.Random(seed).uniform(0, self.seconds))

    def _compare(self, name: str) -> None:
        runs = self.folder / "runs"
        if outcome(runs / name) != outcome(runs / self.reference):
            raise Failure("another curve, or other weights")
        shutil.rmtree(runs / name)


def outcome(run: Path) -> tuple[list, bytes]:
    """The curve of a run, and its finished weights."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [(r["stage"], r["step"], r["loss"]) for r in records]
    return curve, (run / "pretrain" / "model.safetensors").read_bytes()


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


def repeat(title: str, trial: Callable[[int, str], bool], seeds: range) -> tuple[str, int]:
    """Run a trial many times; its line in the table and the number of failures."""
    hits, failures, begin = 0, [], time.monotonic()
    for seed in seeds:
        try:
            hits += trial(seed, f"{title.replace(' ', '-')}-{seed}")
        except Failure as failure:
            failures.append(f"  {title}, seed {seed}: {failure}")
    seconds = time.monotonic() - begin
    print("\n".join(failures), end="\n" if failures else "")
    line = f"{title:22} {len(seeds):6} {hits:6} {len(failures):9} {seconds:7.0f} s"
    return line, len(failures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_cater(folder / "cater", SyntheticCater(train=12, val=6))

        def seeds(count: int) -> range:
            return range(asked.seed, asked.seed + count)

        lines = [
            repeat(
                "damaged checkpoint", lambda s, name: damage(s, folder / name), seeds(asked.damages)
            ),
            repeat("kill -9", Trials(folder, 1).kill, seeds(asked.kills)),
            repeat("death of one of 2", Trials(folder, 2).rank_death, seeds(asked.deaths)),
        ]
    print(f"{'trial':22} {'number':>6} {'struck':>6} {'failures':>9}")
    print("\n".join(line for line, _ in lines))
    sys.exit(any(failures for _, failures in lines))


if __name__ == "__main__":
    main()
