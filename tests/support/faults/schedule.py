"""One schedule of faults, drawn from a seed, and what has to hold in it."""

from __future__ import annotations

import errno
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivcl_fast.manifest import MANIFEST, Manifest
from tests.support.faults.command import Command
from tests.support.faults.scenes import SCENES, contents, progress, verifying
from tests.support.faults.system import Fault
from tests.support.strangers import check_strange, strange_files

HANG_SECONDS = 60
LEAST_TICKS = 50
"""Hundredths of a second that a command computes in that time, unless it hangs."""
ITEMS = ("videos", "scenes")
"""Folders of a data set."""
FAILURES = {
    "read": (errno.EIO,),
    "write": (errno.ENOSPC, errno.ENOSPC, errno.EIO),
    "look": (errno.EIO, errno.EACCES),
    "name": (errno.ENOSPC, errno.EACCES),
    "sync": (errno.EIO, errno.ENOSPC),
}


Expected = tuple[dict[str, Any], list[dict[str, int]]]
"""What an undisturbed command leaves, and the number of calls of each kind by each rank."""


class Violation(Exception):
    """Something was lost, silent, or not told in one line."""


def finish(running: Sequence[Command]) -> None:
    """Wait for commands; raises :class:`Violation` if they hang.

    On a busy machine a command may take long, but it computes, or could; one that waits only looks
    around.
    """
    seen, since = -LEAST_TICKS, 0.0
    while any([command.running() for command in running]):
        time.sleep(0.002)
        if time.monotonic() - since < HANG_SECONDS:
            continue
        processes = [process for command in running for process in command.processes]
        used = sum(process.cpu_ticks() for process in processes)
        starved = any(process.waits_for_cpu() for process in processes)
        if used - seen < LEAST_TICKS and not starved:
            raise Violation("a command hangs")
        seen, since = used, time.monotonic()


def draw_scene(seed: int) -> str:
    """The name of the scene of a schedule."""
    weights = [scene.weight for scene in SCENES.values()]
    return random.Random(seed).choices([*SCENES], weights)[0]


@dataclass
class Schedule:
    """A schedule in a folder of its own, which must not exist yet."""

    name: str
    """Of its scene."""
    seed: int
    template: Path
    root: Path
    expected: Expected
    struck: Counter[str] = field(default_factory=Counter)
    """Faults that have occurred."""
    told: list[str] = field(default_factory=list)
    """What happened, for a report."""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.scene = SCENES[self.name]
        self.strange: dict[Path, str] = {}
        self.running: list[Command] = []

    def run(self) -> None:
        """Run it; raises :class:`Violation`."""
        self.scene.set_up(self.template, self.root)
        if self.draw.random() < 0.5:
            self.strange = strange_files(self.root)
        try:
            for _ in range(self.draw.randint(2, 3)):
                if self.draw.random() < 0.25:
                    self.change_a_byte()
                self.disturbed()
            self.wait_for(Command(self.scene, self.root))
        finally:
            for command in self.running:
                command.end()
        left, (expected, _) = contents(self.root), self.expected
        check_strange(self.strange)
        for path in self.strange:
            left.pop(path.relative_to(self.root).as_posix(), None)
        if left != expected:
            names = [n for n in left.keys() | expected if left.get(n, b"") != expected.get(n, b"")]
            raise Violation(f"other contents: {sorted(names)}")
        for manifest in self.root.rglob(MANIFEST):
            Manifest.read(manifest.parent).verify()

    # --- Faults ---------------------------------------------------------------------------------

    def fault(self, rank: int) -> Fault:
        """Draw one fault of a process."""
        calls = self.expected[1][rank]
        action = self.draw.choice(["kill", "kill", "stop", "wait", "fail", "fail", "fail"])
        kinds = [k for k in FAILURES if calls[k]]
        kind = self.draw.choice(kinds) if action == "fail" or self.draw.random() < 0.5 else "any"
        at = int(calls[kind] * self.draw.random() * self.draw.choice([1, 1, 0.3]))
        if action == "fail":
            span = self.draw.choice([1, 1, 3, 30, 10**6])
            return Fault(kind, at, action, self.draw.choice(FAILURES[kind]), span)
        return Fault(kind, at, action, self.draw.randint(1, 50))

    def disturbed(self) -> None:
        """Run the command with faults; sometimes two of it at a time."""
        before = progress(self.root)
        count = 1 + (self.draw.random() < 0.25)
        chosen = [
            [
                [self.fault(rank) for _ in range(self.draw.randint(1, 3))]
                for rank in range(self.scene.ranks)
            ]
            for _ in range(count)
        ]
        if count > 1:
            self.struck["race"] += 1
        self.wait_for(*(Command(self.scene, self.root, faults) for faults in chosen))
        after = progress(self.root)
        if lost := [stage for stage in before if after.get(stage, 0) < before[stage]]:
            raise Violation(f"steps of {lost} were lost: {before} -> {after}")
        check_strange(self.strange)

    def wait_for(self, *commands: Command, damaged: Path | None = None) -> None:
        """Wait for commands that have been started, and check how each has ended."""
        self.running = [*commands]
        finish(commands)
        for command in commands:
            self.check(command, damaged)

    def check(self, command: Command, damaged: Path | None = None) -> None:
        """Raise :class:`Violation` unless the command ended well, or its fault explains why not."""
        struck, ends = command.struck(), command.ends()
        self.struck.update(fault.action for fault in struck)
        statuses = ", ".join(str(status) for status, _ in ends)
        self.told.append(f"{' and '.join(map(str, struck)) or 'no fault'}: {statuses}")
        if "Traceback" in command.output():
            raise Violation(f"a traceback: {command.output()}")
        actions = {fault.action for fault in struck}
        if command.failed and not any(status for status, _ in ends):
            raise Violation(f"ranks end for no reason: {command.output()}")
        for status, output in ends:
            if status == 0 or (status == -signal.SIGKILL and "kill" in actions):
                continue
            errors = re.findall("^error: .*$", output, re.MULTILINE)
            if status != 2 or len(errors) != 1 or not output.endswith(f"{errors[0]}\n"):
                raise Violation(f"exit status {status}: {output}")
            self.told.append(errors[0].replace(str(self.root), ""))
            if "fail" not in actions and (damaged is None or damaged.name not in errors[0]):
                raise Violation(f"an error without a reason: {output}")

    # --- Damage ---------------------------------------------------------------------------------

    def change_a_byte(self) -> None:
        """Change a byte of a file; if a command then names the file, undo it."""
        files = [
            path for path in sorted(self.root.rglob("*"))
            if path.is_file() and path not in self.strange and path.stat().st_size
            and "tensorboard" not in path.parts and path.suffix not in (".lock", ".tmp")
            # The checksums of a data set are those of the files that are there when it is finished.
            and ((path.parents[1] / "lists").is_dir() or path.parent.name not in ITEMS)
        ]  # fmt: skip
        if not files:
            return
        file = self.draw.choice(files)
        content = bytearray(file.read_bytes())
        content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        right = file.read_bytes()
        file.write_bytes(content)
        self.struck["byte"] += 1
        self.told.append(f"a byte of {file.relative_to(self.root)} changed")
        is_frames = file.suffix in (".u8", ".avi")  # which only --verify reads again
        command = Command(verifying(file.parents[1]) if is_frames else self.scene, self.root)
        self.wait_for(command, damaged=file)
        if command.failed and file.read_bytes() != content:
            raise Violation(f"{file} was refused, and then changed")
        if not command.failed and is_frames:
            raise Violation(f"{file}: --verify accepts a changed byte")
        if file.exists() and file.read_bytes() == content:  # it was refused, or is not read
            file.write_bytes(right)
