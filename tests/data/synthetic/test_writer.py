"""Synthetic data sets have the same bytes after any interruption, for any number of workers."""

from __future__ import annotations

import errno
import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.data.synthetic.writer import begin, read_spec, write_dataset
from ivcl_fast.errors import UserError
from tests.data.synthetic.conftest import SPECS


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(params=SPECS)
def made(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(request.param.replace("-", "_"))


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("made", ["cater", "acre"], indirect=True)
def test_workers_do_not_change_a_byte(tmp_path: Path, made: tuple[str, Path]) -> None:
    name, folder = made
    spec = SPECS[name]
    calls: list[tuple[int, int]] = []
    out = write_dataset(tmp_path / "two", spec, 2, lambda *call: calls.append(call))
    assert contents(out) == contents(folder)
    assert calls == [(done, 8) for done in range(9)]


def test_the_folder_records_its_spec(made: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = made
    spec = SPECS[name]
    assert type(spec)(**read_spec(folder)) == spec  # type: ignore[arg-type]
    assert read_spec(tmp_path) is None
    (tmp_path / "synthetic.json").write_text("[]")
    with pytest.raises(UserError, match=r"synthetic\.json"):
        read_spec(tmp_path)


@pytest.mark.usefixtures("forked_workers")
def test_killed_and_continued(tmp_path: Path, cater: Path) -> None:
    spec = SPECS["cater"]

    def kill(done: int, total: int) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = ForkContext().Process(target=write_dataset, args=(tmp_path, spec, 2, kill))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and not (tmp_path / "lists").exists()
    assert contents(write_dataset(tmp_path, spec, workers=1)) == contents(cater)


def test_one_command_writes_and_another_waits(tmp_path: Path, cater: Path) -> None:
    """Threads stand for processes: a lock is of an open file."""
    spec = SPECS["cater"]
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(write_dataset, tmp_path / "out", spec, 1) for _ in range(2)]
    assert all(one.result() == tmp_path / "out" for one in both)
    assert contents(tmp_path / "out") == contents(cater)


def test_another_command_begins_at_the_same_moment(
    tmp_path: Path, cater: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, spec, is_file = tmp_path / "out", SPECS["cater"], Path.is_file

    def just_before(path: Path) -> bool:
        answer = is_file(path)
        if path.parent == out:
            monkeypatch.undo()
            begin(out, spec)
        return answer

    monkeypatch.setattr(Path, "is_file", just_before)
    write_dataset(out, spec, 1)
    assert contents(out) == contents(cater)


def test_a_complete_folder_is_left_alone(made: tuple[str, Path]) -> None:
    name, folder = made
    spec = SPECS[name]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    calls: list[tuple[int, int]] = []
    write_dataset(folder, spec, 2, lambda *call: calls.append(call))
    with pytest.raises(UserError, match="other settings"):
        write_dataset(folder, replace(spec, seed=8))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert calls == []


def test_a_folder_of_another_version_is_not_completed(
    made: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its videos would have other pictures."""
    name, folder = made
    spec = SPECS[name]
    monkeypatch.setattr(type(spec), "format_version", 99)
    with pytest.raises(UserError, match="another version of ivcl_fast"):
        write_dataset(folder, spec, workers=1)
    assert read_spec(folder) is not None
    with pytest.raises(UserError, match="another version of ivcl_fast"):
        read_spec(folder, 99)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("cater", "videos"), ("acre", "config"), ("something-else", "dataset_splits")],
)
def test_a_folder_with_other_content_is_refused(tmp_path: Path, name: str, entry: str) -> None:
    spec = SPECS[name]
    (tmp_path / "real" / entry).mkdir(parents=True)
    with pytest.raises(UserError, match="expected a new or empty folder"):
        write_dataset(tmp_path / "real", spec)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a new or empty folder"):
        write_dataset(tmp_path / "file", spec)
    with pytest.raises(UserError, match="cannot write"):
        write_dataset(tmp_path / "file" / "below", spec)


def test_a_video_on_a_full_disk_is_a_single_error(capfd: pytest.CaptureFixture[str]) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    form: dict[str, Any] = dict(container="avi", codec="mjpeg", pixel_format="yuvj420p", fps=2)
    with pytest.raises(OSError, match="No space left"):
        encode_video(Full(), iter([np.zeros((32, 32, 3), np.uint8)]), options={}, **form)
    assert capfd.readouterr().err == ""
