"""Data sources by name, and formats that other packages add."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.registry import check_options, find_task
from ivcl_fast.errors import UserError
from ivcl_fast.train import main
from tests.support.own_videos import write_one
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS


def install(site: Path, module: str, code: str, *entries: str) -> None:
    """Install a package as pip does, as far as entry points are concerned."""
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ivcl_fast.datasets]\n" + "\n".join(entries) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("documented_mine", "others"):
        sys.modules.pop(name, None)


def test_the_documented_class_trains(site, tmp_path, command):
    code = "\n".join(re.findall(r"^ *(?:>>>|\.\.\.) ?(.*)$", Dataset.__doc__ or "", re.M))
    head = "from pathlib import Path\nfrom ivcl_fast.data.dataset import Clip, Media\n"
    install(site, "documented_mine", head + code, "mine = documented_mine:Mine")
    data = tmp_path / "data"
    for number in (0, 7, 14, 21, 28, 35):  # all are mp4
        write_one(data, number)
    names = sorted(path.stem for path in data.glob("*.mp4"))
    for split, chosen in (("train", names[:4]), ("val", names[4:])):
        lines = (f"{name} {n % 2}" for n, name in enumerate(chosen))
        (data / f"{split}.txt").write_text("\n".join(lines))
    flags = (*RUN_FLAGS, *FRAME_FLAGS, "--out", tmp_path, "--name", "run", "--no-pictures")
    status, _, err = command(main, "--data", f"mine:{data}", *flags)
    assert status == 0, err
    assert "left-right on mine:" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("cater:x", {"frame_stride", "clip_seconds", "crop"}),
        ("synthetic", {"frame_stride", "clip_seconds", "crop"}),
        ("acre:x", {"mirror", "frame_stride", "clip_seconds", "crop"}),
        ("something-else:x", {"mirror"}),
        ("videos:x", set()),
    ],
)
def test_settings_that_would_change_the_answers_are_refused(source, refused):
    check_options(DataConfig(source))
    others = dict(mirror=True, frame_stride=2, clip_seconds=2.0, crop="center")
    for name, value in others.items():
        given = DataConfig(source, **{name: value})
        if name in refused:
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')}: .* got {source}"):
                check_options(given)
        else:
            check_options(given)


@pytest.mark.parametrize(
    ("name", "task", "what"),
    [
        ("movies", "auto", r"--data: expected one of cater:DIR.*synthetic:moving.*, got 'movies'"),
        ("acre:", "auto", r"--data: expected one of .*acre:DIR.*, got 'acre:'"),
        ("synthetic", "acre", r"--task: expected one of auto, localize, .*, got 'acre'"),
    ],
)
def test_unknown_sources_and_tasks(name, task, what):
    with pytest.raises(UserError, match=what):
        find_task(name, task)
