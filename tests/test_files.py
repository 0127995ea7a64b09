"""Files that appear complete or not at all, and locks."""

from __future__ import annotations

import fcntl
import os
import stat

from ivcl_fast.files import atomic_folder, locked, write_text
from tests.support.power_cut import Disk


def test_what_takes_its_name_is_on_the_disk(tmp_path, monkeypatch):
    """After a power cut, it would be empty otherwise, and what it replaced would be gone."""
    disk = Disk(monkeypatch)
    write_text(tmp_path / "a.txt", "text")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "b.txt").write_text("more text")
    assert disk.renamed == {"a.txt", "folder/b.txt"} and not disk.unsafe
    write_text(tmp_path / "c.txt", "text", durable=False)
    assert disk.unsafe == {"c.txt"}


def test_locks_reach_other_machines(tmp_path, monkeypatch):
    """So they do on a network file system, if the locked file is a file that is open to write."""
    real = fcntl.flock

    def flock(handle: int, flags: int) -> None:
        assert stat.S_ISREG(os.fstat(handle).st_mode)
        assert fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        real(handle, flags)

    monkeypatch.setattr(fcntl, "flock", flock)
    for path in (tmp_path, tmp_path / "build.lock"):
        with locked(path) as held, locked(path, wait=False) as held_twice:
            assert held and not held_twice
