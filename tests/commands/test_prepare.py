"""The command ``prepare``: flags, files and messages."""

from __future__ import annotations

import functools
import re

import pytest

from ivcl_fast import prepare
from ivcl_fast.data.store.frame_store import FrameStore
from tests.support.painted import numbers_of_rows, write_painted


@pytest.fixture
def command(command):
    """Run ``prepare`` with some arguments: its exit status, stdout and stderr."""
    return functools.partial(command, prepare.main)


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "cater"
    for folder in ("videos", "scenes", "lists/localize"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        write_painted(root / "videos" / f"v{number}.avi", number, 5 + number)
    (root / "videos" / "v3.avi").write_bytes(b"")
    (root / "lists/localize/train.txt").write_text("v0.avi 1\n/a/v1.avi 2\nv3.avi 3\n")
    (root / "lists/localize/val.txt").write_text("v2.avi 1\nv4.avi 2\n")
    return root


SMALL = ("--decoder", "pyav", "--image-size", 32, "--workers", 1)


def test_builds_the_store(command, package):
    status, out, _ = command(f"cater:{package}", *SMALL, "--verify")
    assert status == 0
    assert "decoding: 5/5 videos" in out
    assert "3 videos, 18 frames" in out
    assert "2 videos could not be used, checksums verified" in out
    store = FrameStore(package / "store-32-p8-pyav")
    assert sorted(store.names) == ["v0", "v1", "v2"]
    assert sorted(store.bad_files) == ["v3", "v4"]
    assert numbers_of_rows(store.rows("v2", [0, 6])) == [(2, 0), (2, 6)]
    assert command(f"cater:{package}", *SMALL)[0] == 0


def test_every_bad_file_is_named(command, package, caplog):
    """Ten on the terminal, all in a file; with --require-all one is enough for an error."""
    for number in range(12):
        (package / "videos" / f"w{number:02d}.avi").write_bytes(b"")
    names = "".join(f"w{number:02d}.avi 1\n" for number in range(12))
    (package / "lists/localize/train.txt").write_text(f"v0.avi 1\n{names}")
    flags = (f"cater:{package}", *SMALL, "--out", package / "store")
    assert command(*flags)[0] == 0
    error = caplog.text
    assert "13 of 15 videos cannot be used:" in error and "and 3 more" in error
    assert sum("(0 bytes)" in line for line in error.splitlines()) == 9
    assert "v4: cannot be opened: No such file" in error
    assert f"the full list is in {package / 'store' / 'bad_files.json'}" in error
    assert len(FrameStore(package / "store").bad_files) == 13
    status, _, error = command(*flags, "--require-all")
    assert status == 2
    assert "--require-all: expected 15 usable videos, got 2; v4: cannot" in error.splitlines()[-1]


def test_parts_of_a_job_array(command, package):
    """The last part completes the store."""
    store = package / "store-32-p8-pyav"
    status, out, _ = command(f"cater:{package}", *SMALL, "--part", "2/2")
    assert status == 0 and "part 2/2 is complete; 3 videos of other parts are missing" in out
    assert not (store / "index.safetensors").exists()
    status, out, _ = command(f"cater:{package}", *SMALL, "--part", "1/2")
    assert status == 0 and "3 videos, 18 frames" in out
    assert (store / "index.safetensors").exists()


def test_synthetic_data_then_its_store(command, tmp_path):
    root = tmp_path / "made"
    flags = ("--train", 2, "--val", 1, "--workers", 1, "--out", root)
    status, out, _ = command("synthetic:cater", *flags)
    assert status == 0 and "2 videos to train on and 1 to evaluate on" in out
    status, out, _ = command(f"cater:{root}", *SMALL, "--out", tmp_path / "store")
    assert status == 0 and "3 videos, 114 frames" in out
    assert FrameStore(tmp_path / "store").image_size == 32


@pytest.mark.parametrize(
    "arguments",
    [
        "films:DIR", "cater:nowhere", "synthetic:cater --image-size 32", "cater:PACKAGE --seed 1",
        "cater:PACKAGE --out s3://bucket/store --part 1/2", "cater:PACKAGE --task count",
        "cater:PACKAGE --image-size 30", "cater:PACKAGE --crop center", "cater:PACKAGE --workers 0",
        "cater:PACKAGE --part 4/3", "cater:PACKAGE --part 2", "synthetic:cater --train 0",
    ],
)  # fmt: skip
def test_mistakes_are_one_line(command, package, arguments):
    before = sorted(package.rglob("*"))
    status, _, error = command(*arguments.replace("PACKAGE", str(package)).split())
    named = re.search(r"--[a-z-]+|(?<=:)[a-zA-Z]+$", arguments)[0]
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and named in lines[0] and "Traceback" not in error
    assert sorted(package.rglob("*")) == before
