"""Deaths of a rank under torchrun, many times over: ``python -m tests.support.rank_deaths``.

In every trial one of two ranks is killed at a random moment. The run has to continue from the
checkpoint that it had, and its curve and weights have to equal, bit for bit, those of an
undisturbed run. ``tests.support.faults`` does the same, and more, to commands of one process.
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
from collections import Counter
from pathlib import Path

from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.models.weights import MODEL
from ivcl_fast.training import checkpoint
from tests.support.processes import children
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

STEPS, LOGGED, SAVED = 100, 20, 3
"""Steps of a run, between its records, and between its checkpoints."""
RANKS = 2
ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    *RUN_FLAGS, *FRAME_FLAGS, "--save-every", str(SAVED), "--stage", "pretrain",
    "--pretrain-clips", str(4 * STEPS), "--no-pictures", "--data", "cater:cater",
]  # fmt: skip


class Failure(Exception):
    """A trial did not end as it has to, or its fault did not strike."""


class Trials:
    """Runs of ``ivcl_fast.train`` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finish(self.start("first"))  # this also makes the frame store
        begin = time.monotonic()
        process = self.start("undisturbed")
        self.wait_for_checkpoint(1, "undisturbed", process)
        first_checkpoint = time.monotonic()
        self.finish(process)
        self.start_seconds = first_checkpoint - begin
        self.save_seconds = (time.monotonic() - first_checkpoint) * SAVED / STEPS
        self.expected = outcome(self.run("undisturbed"))
        self.compare(self.run("first"), [])

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def start(self, name: str, restarts: int = 0) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.2"]
        train = ["-m", "ivcl_fast.train", *FLAGS, "--name", name]
        return subprocess.Popen(
            [sys.executable, *launcher, *train],
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
        while len(ranks := children(process.pid)) < RANKS:
            self.check_running(process)
        return ranks

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


def main() -> None:
    """Run all trials, print their number and failures, and exit with status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    flags = parser.parse_args()
    struck: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        write_cater(Path(place) / "cater", SyntheticCater(train=12, val=6))
        trials = Trials(Path(place))
        for seed in range(flags.seed, flags.seed + flags.deaths):
            try:
                struck[trials.kill_rank(seed, f"death-{seed}")] += 1
            except (Failure, OSError, ValueError) as failure:  # the latter two: files are missing
                print(f"seed {seed}: {failure}", flush=True)
    hits = ", ".join(f"{struck[what]} {what}" for what in sorted(struck))
    print(f"{flags.deaths} deaths ({hits}), {flags.deaths - struck.total()} failures")
    sys.exit(struck.total() < flags.deaths)


if __name__ == "__main__":
    main()
