"""What a power cut leaves: of files, only what was flushed before they took their name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Disk:
    """Watches which files are flushed, and which take the name under which they are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: set[tuple[int, ...]] = set()
        self.renamed: set[str] = set()
        """Files that took a name, alone or with their folder."""
        self.unsafe: set[str] = set()
        """Those whose content was not flushed before."""
        fsync, replace = os.fsync, os.replace

        def flush(handle: int) -> None:
            fsync(handle)
            self.flushed.add(content(os.fstat(handle)))

        def take_name(source: Path, target: Path) -> None:
            for path in [path for path in (source, *source.rglob("*")) if path.is_file()]:
                name = str(target.name / path.relative_to(source))
                self.renamed.add(name)
                if content(path.stat()) not in self.flushed:
                    self.unsafe.add(name)
            replace(source, target)

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "replace", take_name)


def content(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to."""
    return status.st_ino, status.st_size, status.st_mtime_ns
