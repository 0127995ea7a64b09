"""Files that are written atomically, and what a killed process leaves of them."""

from __future__ import annotations

import fcntl
import os
import stat

from ivcl_fast import files
from ivcl_fast.files import atomic_folder, atomic_write, locked, remove_temporaries, write_text
from tests.support.power_cut import Disk


def test_what_a_killed_process_leaves_is_deleted_by_the_next(tmp_path):
    """What another one is writing is kept."""
    path, leftover = tmp_path / "a[1].json", tmp_path / "a[1].json.7-2c.ivcl.tmp"
    leftover.write_text("half")
    with atomic_write(path) as file:
        (being_written,) = tmp_path.iterdir()
        assert being_written != leftover
        write_text(path, "first")
        assert being_written.exists()
        file.write(b"second")
    assert path.read_text() == "second" and [*tmp_path.iterdir()] == [path]


def test_a_new_file_that_is_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch):
    def take_once(handle: int, flags: int) -> bool:
        monkeypatch.undo()
        (being_written,) = tmp_path.iterdir()
        being_written.unlink()
        return False

    monkeypatch.setattr(files, "_lock", take_once)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_what_takes_its_name_is_on_the_disk(tmp_path, monkeypatch):
    """After a power cut, it would be empty otherwise, and what it replaced would be gone."""
    disk = Disk(monkeypatch)
    write_text(tmp_path / "a.txt", "text")
    with atomic_folder(tmp_path / "folder", ["b.txt"]) as folder:
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


def test_without_locks_what_others_may_be_writing_stays(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError

    leftover = tmp_path / "a.json.7-2c.ivcl.tmp"
    leftover.write_text("half")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        remove_temporaries(tmp_path, ["*"])
    assert leftover.exists()
    remove_temporaries(tmp_path, ["*"])
    assert not leftover.exists()
