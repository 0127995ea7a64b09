"""Synthetic data sets have the same bytes after any interruption, for any number of workers."""

from __future__ import annotations

import errno
import io
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivcl_fast.data.synthetic.acre.write import SyntheticAcre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.data.synthetic.something_else.write import (
    SyntheticSomethingElse,
    write_something_else,
)
from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.data.synthetic.writer import read_spec
from ivcl_fast.errors import UserError
from tests.data.synthetic.conftest import WRITERS

SIZES = {"cater": 8, "acre": 8, "something-else": 38}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(params=WRITERS)
def made(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(request.param.replace("-", "_"))


def test_workers_do_not_change_a_byte(tmp_path: Path, made: tuple[str, Path]) -> None:
    name, folder = made
    write, spec = WRITERS[name]
    calls: list[tuple[int, int]] = []
    out = write(tmp_path / "two", spec, 2, lambda *call: calls.append(call))
    assert contents(out) == contents(folder)
    assert calls == [(done, SIZES[name]) for done in range(SIZES[name] + 1)]


def test_the_folder_records_its_spec(made: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = made
    _, spec = WRITERS[name]
    assert type(spec)(**read_spec(folder)) == spec  # type: ignore[arg-type]
    assert read_spec(tmp_path) is None
    (tmp_path / "synthetic.json").write_text("[]")
    with pytest.raises(UserError, match=r"synthetic\.json"):
        read_spec(tmp_path)


def test_another_seed_makes_other_data(tmp_path: Path, cater: Path, something_else: Path) -> None:
    """ACRE's problems: see test_acre_rules.py."""
    video = "videos/CATER_new_000000.avi"
    out = write_cater(tmp_path / "cater", SyntheticCater(train=1, val=0, seed=8), workers=1)
    assert (out / video).read_bytes() != (cater / video).read_bytes()
    video = "20bn-something-something-v2/1.webm"
    spec = SyntheticSomethingElse(train=1, val=0, seed=8)
    out = write_something_else(tmp_path / "something-else", spec, workers=1)
    assert (out / video).read_bytes() != (something_else / video).read_bytes()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_continued(tmp_path: Path, something_else: Path, stop: signal.Signals) -> None:
    out = tmp_path / "stopped"
    # When some clips are done: SIGKILL goes to the parent only, Ctrl-C in a terminal to all.
    target = "os.kill(os.getpid()" if stop == signal.SIGKILL else "os.killpg(os.getpgrp()"
    program = (
        "import os, sys; from pathlib import Path\n"
        "from ivcl_fast.data.synthetic.something_else.write import *\n"
        f"def progress(done, _): done == 5 and {target}, {int(stop)})\n"
        "spec = SyntheticSomethingElse(train=20, val=18, seed=7)\n"
        "write_something_else(Path(sys.argv[1]), spec, 2, progress)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(out)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    # The workers hold the other end of this pipe: it ends when they have.
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -stop
    assert not (out / "dataset_splits").exists()
    if stop == signal.SIGINT:
        last = output.decode().splitlines()[-1]
        assert re.fullmatch(r"KeyboardInterrupt: stopped after 5 of 38 videos; .* continues", last)
        assert output.count(b"Traceback") == 1, "a worker complained"
    write, spec = WRITERS["something-else"]
    assert contents(write(out, spec, workers=1)) == contents(something_else)


def unfinish(out: Path, index: str, file: str, last: str, content: str) -> None:
    """Leave the files of a killed process: a partial index, and an item with partial files."""
    (out / index).rename(out / f"{index}.partial")
    (out / f"{index}.partial" / content).write_text("[[{")
    half = (out / file).read_bytes()[:1000]
    (out / f"{file}.123.ivcl.tmp").write_bytes(half)
    (out / file).unlink()
    (out / last).unlink(missing_ok=True)
    (out / f"{last}.123.ivcl.tmp").write_text("[")


def test_leftovers_of_a_kill_are_completed(tmp_path: Path, made: tuple[str, Path]) -> None:
    name, folder = made
    write, spec = WRITERS[name]
    out = tmp_path / "left"
    shutil.copytree(folder, out)
    if name == "cater":
        video = "videos/CATER_new_000005.avi", "scenes/CATER_new_000005.json"
        unfinish(out, "lists", *video, "localize/val.txt")
        (out / "scenes" / "CATER_new_000003.json").unlink()  # its video is complete
    elif name == "acre":
        panel = "images/ACRE_train_000003_09.png", "scenes/ACRE_train_000003_09.json"
        unfinish(out, "config", *panel, "train.json")
    else:
        (out / "boxes.part").mkdir()
        clip = f"{VIDEOS}/3.webm", "boxes.part/3.json"
        unfinish(out, "dataset_splits", *clip, "compositional/train.json")
        (out / "bounding_box_smthsmth_part2.json").unlink()
    assert contents(write(out, spec, workers=1)) == contents(folder)


VIDEOS = "20bn-something-something-v2"


def test_one_process_writes_and_the_other_waits(tmp_path: Path) -> None:
    """The waiting one then finds everything there. Workers do not run the script again."""
    script = (
        "import sys, logging\nfrom pathlib import Path\n"
        "from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater\n"
        "logging.basicConfig()\n"
        "write_cater(Path(sys.argv[1]), SyntheticCater(train=6, val=2), workers=2)\n"
    )
    (tmp_path / "write.py").write_text(script)
    both = [
        subprocess.Popen(
            [sys.executable, tmp_path / "write.py", tmp_path / "out"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = "".join(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0], told
    assert "Traceback" not in told
    spec = SyntheticCater(train=6, val=2)
    assert contents(tmp_path / "out") == contents(write_cater(tmp_path / "alone", spec, workers=1))


def test_a_complete_folder_is_left_alone(made: tuple[str, Path]) -> None:
    name, folder = made
    write, spec = WRITERS[name]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    calls: list[tuple[int, int]] = []
    write(folder, spec, 2, lambda *call: calls.append(call))
    with pytest.raises(UserError, match="other settings"):
        write(folder, replace(spec, seed=8))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert calls == []


def test_a_folder_of_another_version_is_not_completed(
    made: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its videos would have other pictures."""
    name, folder = made
    write, spec = WRITERS[name]
    monkeypatch.setattr(type(spec), "format_version", 99)
    with pytest.raises(UserError, match="another version of ivcl_fast"):
        write(folder, spec, workers=1)
    assert read_spec(folder) is not None
    with pytest.raises(UserError, match="another version of ivcl_fast"):
        read_spec(folder, 99)


@pytest.mark.parametrize(
    ("name", "entry"), [("cater", "videos"), ("acre", "config"), ("something-else", VIDEOS)]
)
def test_a_folder_with_other_content_is_refused(tmp_path: Path, name: str, entry: str) -> None:
    write, spec = WRITERS[name]
    (tmp_path / "real" / entry).mkdir(parents=True)
    with pytest.raises(UserError, match="expected a new or empty folder"):
        write(tmp_path / "real", spec)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a new or empty folder"):
        write(tmp_path / "file", spec)
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "below", spec)
    with pytest.raises(UserError, match=r"workers: .* got 0"):
        write(tmp_path / "out", spec, workers=0)
    assert not (tmp_path / "out").exists()


COMMON = [("size", "huge"), ("train", 0), ("train", 2.5), ("val", -1), ("seed", -1), ("seed", True)]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((kind, *pair) for kind in (SyntheticCater, SyntheticAcre) for pair in COMMON),
        *((SyntheticSomethingElse, *pair) for pair in COMMON),
        (SyntheticCater, "camera", "shaky"),
        (SyntheticAcre, "regime", "IID"),
        (SyntheticAcre, "test", 2.5),
    ],
)
def test_bad_values_name_the_field(kind: Any, field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{field}: .*{value}") as error:
        kind(**{field: value})
    assert "\n" not in str(error.value)


def test_default_names_differ_where_the_data_do() -> None:
    specs: list[Any] = [SyntheticAcre(), SyntheticAcre(regime="sys"), SyntheticAcre(size="full")]
    specs += [SyntheticAcre(val=1), SyntheticAcre(test=1), SyntheticAcre(seed=1)]
    specs += [SyntheticCater(), SyntheticCater(camera="moving"), SyntheticCater(size="full")]
    names = [spec.default_name for spec in specs]
    assert len(set(names)) == len(specs)
    assert names[5] == "synthetic-acre-iid-embedded-3000-500-500-seed1"
    assert names[6] == "synthetic-cater-embedded-static-3000-600"
    spec = SyntheticSomethingElse(train=20, val=18, seed=7)
    assert spec.default_name == "synthetic-something-else-embedded-20-18-seed7"


def test_a_video_on_a_full_disk_is_a_single_error(capfd: pytest.CaptureFixture[str]) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    form: dict[str, Any] = dict(container="avi", codec="mjpeg", pixel_format="yuvj420p", fps=2)
    with pytest.raises(OSError, match="No space left"):
        encode_video(Full(), iter([np.zeros((32, 32, 3), np.uint8)]), options={}, **form)
    assert capfd.readouterr().err == ""
