"""What all tests share.

Tests marked ``gpu`` are skipped, with the reason, where there is no NVIDIA GPU.

Tests compute with one thread, unless ``OMP_NUM_THREADS`` says otherwise: their tensors are too
small to share, and on a busy machine threads would only wait for each other.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ivcl_fast.command import run_command

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    # What results are compared with is float32 in full, convolutions too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # cuBLAS reads it before its first product only: too late in the test of repeatable training.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A shell starts background jobs deaf to Ctrl-C, and children inherit that: tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords hold the names of folders, too
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests run in an empty folder, so what lies in the checkout (``runs/``, ``data/``) is not met.

    Python processes that tests start there find the checkout's packages.
    """
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.chdir(folder)
        yield folder


@pytest.fixture(autouse=True)
def working_folder_stays_clean(start_folder: Path) -> Iterator[None]:
    """No test may leave a file in the working folder."""
    yield
    assert not list(start_folder.iterdir()), "a test wrote into the working folder"


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``command(main, *arguments)`` runs a command here: its exit status, stdout and stderr."""

    def run(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(main)
        return int(stop.value.code or 0), *capsys.readouterr()

    return run
