"""A file that the system cannot read is not taken for a damaged one."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.readable import CHUNK, check_readable, if_damaged_twice
from ivcl_fast.data.store.sources import GONE, state_of
from ivcl_fast.errors import UserError
from tests.support.painted import media


def broken_disk(*arguments, **options):
    raise OSError(errno.EIO, "Input/output error")


def test_damage_is_what_fails_twice(tmp_path, monkeypatch):
    one, failures = media(tmp_path / "a.avi"), [VideoError("first"), VideoError("second")]
    one.files[0].touch()

    def attempt() -> str:
        if failures:
            raise failures.pop(0)
        return "frames"

    with pytest.raises(VideoError, match="second"):
        if_damaged_twice(one, attempt)
    failures.append(VideoError("a fault that has passed"))
    assert if_damaged_twice(one, attempt) == "frames"
    failures.append(VideoError("a fault that stays"))
    monkeypatch.setattr(Path, "open", broken_disk)
    with pytest.raises(UserError, match=f"{one.files[0]}: cannot be read: Input/output error"):
        if_damaged_twice(one, attempt)


def test_a_disk_that_fails_at_the_end_of_a_file(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, *size):
            return super().read(*size) or broken_disk()

    one = media(tmp_path / "a.avi")
    one.files[0].touch()
    monkeypatch.setattr(Path, "open", lambda *_: Failing(bytes(3 * CHUNK)))
    with pytest.raises(UserError, match=r"a\.avi: cannot be read: Input/output error"):
        check_readable(one)


def test_a_file_that_cannot_be_looked_at_is_not_gone(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("none", "loop", "a/b"):
        assert state_of(media(tmp_path / name)) == GONE
    monkeypatch.setattr(Path, "stat", broken_disk)
    with pytest.raises(UserError, match="cannot be read: Input/output error"):
        state_of(media(tmp_path / "none"))
