"""Files that are written atomically, and what a killed process leaves of them."""

from __future__ import annotations

from ivcl_fast import files
from ivcl_fast.files import atomic_write, write_text


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
