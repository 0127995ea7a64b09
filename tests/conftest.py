"""What all tests share.

Tests marked ``gpu`` are left out without an NVIDIA GPU that runs the kernels; the header says why.

``make test`` shares the tests among processes, each of which runs files that follow each other, so
that a module's fixtures are seldom made twice. Tests, and the commands that they start, compute
with one thread, unless ``OMP_NUM_THREADS`` says otherwise: their tensors are too small to share,
and on a busy machine threads would only wait for each other.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ivcl_fast.kernels._op import unsupported_reason
from ivcl_fast.models.accelerate import comparison, crossovers
from tests.support.short_run import ShortRun, make_short_run

ROOT = Path(__file__).resolve().parent.parent
MOST_PROCESSES = 8
"""Each takes up to 2 GB of memory, together with the commands that it starts."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for ``-n auto``: one per CPU, or none for single files, which they would delay."""
    if all(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def pytest_configure() -> None:
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads))
    # Otherwise every process that compiles starts compiler processes, which import PyTorch again.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # What results are compared with is float32 in full, convolutions too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # cuBLAS reads it before its first product only: too late in the test of repeatable training.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A shell starts background jobs deaf to Ctrl-C, and children inherit that: tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def no_gpu_reason() -> str | None:
    """Return why tests marked ``gpu`` cannot run here, or None if they can."""
    if torch.cuda.is_available():
        return unsupported_reason(torch.device("cuda"))
    return "no NVIDIA GPU on this machine"


def pytest_report_header() -> list[str]:
    reason = no_gpu_reason()
    return [f"tests marked gpu are left out: {reason}"] if reason else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if no_gpu_reason() is None or config.option.collectonly:
        return
    # Keywords hold the names of folders, too, so -m would not do.
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_collection_finish() -> None:
    """Exempt the half million objects of what is imported by now from garbage collection.

    Whoever measures or frees memory collects garbage, at 0.2 s each time otherwise.
    """
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let Python free them on exit; otherwise, Triton's bindings warn of leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def memory_is_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Several processes share a GPU, and PyTorch keeps what the largest test of each has taken."""
    yield
    if torch.cuda.is_available() and request.node.get_closest_marker("gpu"):
        torch.cuda.empty_cache()


@pytest.fixture(scope="session", autouse=True)
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests run in an empty folder, so what lies in the checkout (``runs/``, ``data/``) is not met.

    Python processes that tests start there find the checkout's packages, and pytest does not take
    itself for one of the processes that share these tests.
    """
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(autouse=True)
def working_folder_stays_clean(start_folder: Path) -> Iterator[None]:
    """No test may leave a file in the working folder."""
    yield
    assert not list(start_folder.iterdir()), "a test wrote into the working folder"


@pytest.fixture(scope="session")
def short_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    """A finished ``train --compile --quick``, made once for all processes of ``make test``."""
    place = tmp_path_factory.getbasetemp()
    shared = hasattr(request.config, "workerinput")  # this is one of several processes
    return make_short_run((place.parent if shared else place) / "short")


@pytest.fixture
def fused_at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """``accelerate`` uses fused forward passes at every length, with nothing compared yet.

    At which lengths they are faster differs between machines.
    """
    always = dict.fromkeys(crossovers.LIMITS, (1 << 30, 1 << 30))
    monkeypatch.setattr(crossovers, "LIMITS", always)
    monkeypatch.setattr(comparison, "_differences", {})


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``command(main, *arguments)`` runs a command here: its exit status, stdout and stderr."""

    from ivcl_fast.command import run_command  # a bare machine with a GPU may lack its packages

    def run(main: Callable[[], None], *arguments: object, **options: bool) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(main, **options)
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()
