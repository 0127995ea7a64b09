"""Runs schedules, or pairs of commands, and prints those that fail."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from ivcl_fast.data.workers import usable_cpus
from ivcl_fast.distributed.group import is_main
from ivcl_fast.training.arguments import parse
from tests.support.faults.command import Command
from tests.support.faults.scenes import SCENES, Scene, contents, write_template
from tests.support.faults.schedule import Expected, Schedule, Violation, draw_scene, finish
from tests.support.faults.system import build_library

ROOT = Path(__file__).resolve().parents[3]
PAIRS = (
    ("train", "train"), ("render", "render"), ("build", "prepare"), ("prepare", "prepare"),
    ("sweep", "sweep"),
)  # fmt: skip
"""Commands that are started at the same time: on the same run, data set, store and study."""


class Harness:
    """What all schedules share: a data set, a run, and what each scene leaves without faults."""

    def __init__(self, place: Path) -> None:
        """``place``: an empty folder."""
        torch.set_num_threads(1)
        parse(["--quick"])  # fills caches, which all processes then share
        self.place, self.template = place, place / "template"
        write_template(self.template)
        for name in ("prepare", "train"):
            self._run(SCENES[name], self.template)
        self._expected: dict[str, Expected] = {}

    def _run(self, scene: Scene, root: Path) -> Command:
        """Run a command without faults, and import what it imports, for all later ones."""
        names = self.place / "modules"

        def tell() -> None:
            try:
                scene.main()
            finally:
                if is_main():
                    names.write_text(" ".join(sys.modules))

        command = Command(dataclasses.replace(scene, main=tell), root)
        finish([command])
        if command.failed:
            raise SystemExit(f"it fails without faults: {command.output()}")
        for name in names.read_text().split():
            with suppress(ImportError):
                importlib.import_module(name)
        return command

    def expected(self, name: str) -> Expected:
        """What a scene leaves, and how many calls it takes, without faults."""
        if name not in self._expected:
            root = self.place / name
            SCENES[name].set_up(self.template, root)
            calls = self._run(SCENES[name], root).calls()
            self._expected[name] = contents(root), calls
            shutil.rmtree(root)
        return self._expected[name]

    def schedule(self, name: str, seed: int, show: bool) -> tuple[Counter[str] | None, str]:
        """Run a schedule; returns the faults that occurred, or None if it failed, and a report."""
        root = self.place / f"{name}-{seed}"
        schedule = Schedule(name, seed, self.template, root, self.expected(name))
        try:
            schedule.run()
        except (Violation, AssertionError, OSError, ValueError) as error:
            what: Any = f"FAILED: {error!s:.6000}"
        else:
            what = "well"
        shutil.rmtree(root)
        told = "".join(f"  {line}\n" for line in schedule.told)
        report = f"{name}:{seed}: {what}\n{told}" if show or what != "well" else ""
        return (schedule.struck if what == "well" else None), report

    def pair(self, number: int, names: tuple[str, str]) -> bool:
        """Whether two commands that are started at the same time end well, with the same files."""
        root = self.place / f"pair-{number}"
        scenes = [SCENES[name] for name in names]
        expected = self.expected(names[0])[0] | self.expected(names[1])[0]
        scenes[0].set_up(self.template, root)
        pair = [Command(scene, root) for scene in scenes]
        finish(pair)
        left = contents(root)
        shutil.rmtree(root)
        if well := not any(command.failed for command in pair) and left == expected:
            return well
        for command in pair:
            print(f"pair {number}, {names}: {command.ends()}")
        print({name for name in left.keys() | expected if left.get(name) != expected.get(name)})
        return False


def parse_seed(text: str) -> tuple[str, int]:
    """Return the scene and the number of ``evaluate:3``; a number alone draws the scene as well."""
    name, _, number = text.rpartition(":")
    return name or draw_scene(int(number)), int(number)


_shared: list[Harness] = []
"""The harness, which forks of this process inherit."""


def run_one(name: str, seed: int, show: bool, end: float) -> tuple[Any, ...] | None:
    """Run a schedule in a fork of this process, unless it is too late to begin."""
    if time.monotonic() > end:
        return None
    return f"{name}:{seed}", *_shared[0].schedule(name, seed, show)


def run_schedules(
    harness: Harness, schedules: Sequence[tuple[str, int]], show: bool, minutes: float, jobs: int
) -> int:
    """Run schedules for some minutes, ``jobs`` at a time, and print a summary.

    Returns 1 if one has failed.
    """
    struck: Counter[str] = Counter()
    failed, number, begin = [], 0, time.monotonic()
    for name in {name for name, _ in schedules}:
        harness.expected(name)  # once for all forks
    _shared.append(harness)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        names, seeds = zip(*schedules, strict=True)
        end = begin + 60 * minutes
        for result in pool.map(run_one, names, seeds, repeat(show), repeat(end)):
            if result is None:
                continue
            what, found, report = result
            print(report, end="", flush=True)
            number += 1
            if found is None:
                failed.append(what)
            struck += found or Counter()
    counts = ", ".join(f"{count} {name}" for name, count in struck.most_common())
    print(
        f"{number} schedules, {struck.total()} faults ({counts}), {len(failed)} violations, "
        f"{time.monotonic() - begin:.0f} s"
    )
    if failed:
        print(f"to run them again: --seeds {' '.join(failed)} --show")
    return min(len(failed), 1)


def run_pairs(harness: Harness, count: int) -> int:
    """Run pairs of each kind, and print how many end well; returns 1 if one does not."""
    status = 0
    for names in PAIRS:
        well = sum(harness.pair(number, names) for number in range(count))
        print(f"{' and '.join(names)}: {well} of {count} pairs end well", flush=True)
        status |= well < count
    return status


def main() -> None:
    """Run what the flags say; exit status 1 if something fails."""
    parser = argparse.ArgumentParser(prog="tests.support.faults", description=__doc__)
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument(
        "--seeds", type=parse_seed, nargs="*", help="run these instead, such as 3 or evaluate:3"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after them")
    parser.add_argument("--pairs", type=int, help="run so many pairs of each kind instead")
    parser.add_argument("--jobs", type=int, default=usable_cpus(), help="run so many at a time")
    parser.add_argument("--show", action="store_true", help="print what happens")
    flags = parser.parse_args()
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        place = Path(folder)
        if "faults.so" not in os.environ.get("LD_PRELOAD", ""):
            environment = os.environ | {"LD_PRELOAD": str(build_library(place))}
            environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "tests.support.faults", *sys.argv[1:]]
            raise SystemExit(subprocess.call(command, env=environment))
        if flags.pairs:
            raise SystemExit(run_pairs(Harness(place), flags.pairs))
        seeds = range(flags.seed, flags.seed + flags.schedules)
        schedules = flags.seeds or [(draw_scene(seed), seed) for seed in seeds]
        harness = Harness(place)
        raise SystemExit(run_schedules(harness, schedules, flags.show, flags.minutes, flags.jobs))


if __name__ == "__main__":
    main()
