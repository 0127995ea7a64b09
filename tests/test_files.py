"""Files that appear complete or not at all, and locks."""

from __future__ import annotations

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


def test_a_folder_or_file_is_locked_once(tmp_path):
    for path in (tmp_path, tmp_path / "build.lock"):
        with locked(path) as held, locked(path, wait=False) as held_twice:
            assert held and not held_twice
