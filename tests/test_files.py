"""Files that appear complete or not at all, and locks."""

from __future__ import annotations

import os

import pytest

from ivcl_fast.files import atomic_folder, atomic_write, locked, write_text


def test_content_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))
        )
    write_text(tmp_path / "a.txt", "text")
    assert calls == ["fsync", "replace"]
    calls.clear()
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "b.txt").write_text("more text")
    assert calls == ["fsync", "fsync", "replace", "fsync"]  # file, folder; then the parent


def test_a_block_that_fails_leaves_the_old_content(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(file) as opened:
        opened.write(b"new")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]


def test_content_is_replaced_at_once(tmp_path):
    """A reader has all of the old content, also of a file that it opened before."""
    file = tmp_path / "a.txt"
    file.write_text("old")
    with file.open() as reader:
        with atomic_write(file) as opened:
            opened.write(b"new")
            opened.flush()
            assert file.read_text() == "old"
        assert reader.read() == "old" and file.read_text() == "new"
    assert [*tmp_path.iterdir()] == [file]


def test_a_folder_or_file_is_locked_once(tmp_path):
    for path in (tmp_path, tmp_path / "build.lock"):
        with locked(path) as held, locked(path, wait=False) as held_twice:
            assert held and not held_twice
