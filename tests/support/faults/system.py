"""Processes whose system fails: the Python side of ``system.c``."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivcl_fast.command import SET_DEATH_SIGNAL

KINDS = ("any", "read", "write", "look", "name", "sync", "lock")
"""Kinds of calls, as in ``system.c``."""
ACTIONS = ("kill", "stop", "wait", "fail")
MOST_FAULTS = 8
SOURCE = Path(__file__).with_name("system.c")


@dataclass(frozen=True)
class Fault:
    """What happens at the calls ``at`` to ``at + span - 1`` of a kind."""

    kind: str
    at: int
    action: str
    value: int = 0
    """Milliseconds to wait, or the number of the error."""
    span: int = 1

    def numbers(self) -> list[int]:
        """As ``system.c`` takes them."""
        return [KINDS.index(self.kind), self.at, self.span, ACTIONS.index(self.action), self.value]

    def __str__(self) -> str:
        what = f"{self.action} {os.strerror(self.value)}" if self.action == "fail" else self.action
        return f"{what} at {self.kind} {self.at}" + (f"+{self.span}" if self.span > 1 else "")


def build_library(folder: Path) -> Path:
    """Compile ``system.c``."""
    library = folder / "faults.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run(["cc", *flags, "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Process:
    """A command in a fork of this process, with faults of calls that concern files of a folder."""

    def __init__(
        self,
        main: Callable[[], Any],
        arguments: Sequence[str],
        root: Path,
        faults: Sequence[Fault],
        environment: Mapping[str, str],
    ) -> None:
        """``main`` is run like ``python -m ... arguments``; ``root`` is the folder.

        ``environment``: variables that it has besides those of this process.
        """
        self.faults, self._output = list(faults), tempfile.TemporaryFile()  # noqa: SIM115
        self._numbers = mmap.mmap(-1, 8 * (len(KINDS) + MOST_FAULTS))
        self.status: int | None = None
        """Exit status, or the number of a signal, negative; None while it runs."""
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(environment)
            self._run(main, arguments, root)

    def poll(self) -> str:
        """Return "running", "ended", or, once each time it has stopped itself, "stopped"."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return "stopped"
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return "running" if self.status is None else "ended"

    def cpu_ticks(self) -> int:
        """Processor time that it has used until now, with that of its own threads."""
        with suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])
        return 0

    def waits_for_cpu(self) -> bool:
        """Whether a thread of it could compute if a CPU, or a disk, had time for it."""
        for file in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with suppress(OSError):
                if file.read_text().rpartition(")")[2].split()[0] in ("R", "D"):
                    return True
        return False

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.poll() != "ended":
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _run(self, main: Callable[[], Any], arguments: Sequence[str], root: Path) -> None:
        status = 1
        try:
            ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
            os.dup2(self._output.fileno(), 1), os.dup2(self._output.fileno(), 2)
            sys.argv = ["command", *arguments]
            numbers = [number for fault in self.faults for number in fault.numbers()]
            memory = ctypes.addressof(ctypes.c_char.from_buffer(self._numbers))
            ctypes.CDLL(None).faults_begin(
                str(root).encode(),
                (ctypes.c_long * len(numbers))(*numbers),
                ctypes.c_long(len(self.faults)),
                ctypes.c_void_p(memory),
            )
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)

    def output(self) -> str:
        """What it has printed."""
        self._output.seek(0)
        return self._output.read().decode()

    def calls(self) -> dict[str, int]:
        """Number of calls of each kind until now."""
        return dict(zip(KINDS, self._all_numbers(), strict=False))

    def struck(self) -> list[Fault]:
        """The faults that have occurred."""
        counts = self._all_numbers()[len(KINDS) :]
        return [fault for fault, count in zip(self.faults, counts, strict=False) if count]

    def _all_numbers(self) -> list[int]:
        return list(memoryview(self._numbers).cast("l"))
