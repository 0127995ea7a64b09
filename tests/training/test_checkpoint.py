"""Checkpoints: damage, pickles and full disks."""

from __future__ import annotations

import io
import pickle
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ivcl_fast.errors import UserError
from ivcl_fast.models.weights import CHECKSUMS, MODEL, read_weights, write_checksums
from ivcl_fast.training import checkpoint


def saved(folder: Path, step: int = 1, width: int = 5) -> Path:
    model = nn.Linear(width, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    return checkpoint.store(folder, checkpoint.snapshot(step, model, [optimizer], {}))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


@pytest.mark.parametrize("name", [*checkpoint.FILES, CHECKSUMS])
def test_damage_names_the_file(tmp_path, name):
    file = saved(tmp_path) / name
    flip_a_bit(file)
    with pytest.raises(ValueError, match="does not match its checksum") as error:
        checkpoint.read(file.parent)
    assert name == CHECKSUMS or str(error.value).startswith(f"{name} ")


def test_a_damaged_checkpoint_counts_as_none_of_those_kept(tmp_path):
    for step in (5, 10):
        saved(tmp_path, step)
    flip_a_bit(tmp_path / "step-00000010" / MODEL)
    (tmp_path / "step-00000011.partial").mkdir()  # of a process that was killed
    assert [p.name for p in checkpoint.list_steps(tmp_path)] == ["step-00000005", "step-00000010"]
    assert checkpoint.latest(tmp_path).step == 5
    saved(tmp_path, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000008"]


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("name", [*checkpoint.FILES, CHECKSUMS])
def test_an_unreadable_file_is_not_damage(tmp_path, monkeypatch, name, error):
    """Training must not start again, which would delete what may be intact."""
    for step in (5, 10):
        saved(tmp_path, step)
    file = tmp_path / "step-00000010" / name
    opened = io.open

    def refuse(path, *arguments, **options):
        if str(path) == str(file):
            raise OSError(error.errno, error.strerror, str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("io.open", refuse)
        patch.setattr("builtins.open", refuse)
        with pytest.raises(
            UserError, match=f"{file}: a checkpoint cannot be read: {error.strerror}"
        ):
            checkpoint.latest(tmp_path)
    assert checkpoint.latest(tmp_path).step == 10


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_never_run(tmp_path):
    trap = Trap(tmp_path / "sprung")
    file = saved(tmp_path / "run") / MODEL
    file.write_bytes(pickle.dumps(trap))
    write_checksums(file.parent, checkpoint.FILES)
    assert checkpoint.latest(tmp_path / "run") is None
    torch.save({"weights": trap}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt: "):
        read_weights(tmp_path / "model.pt")
    assert not trap.path.exists()


@contextmanager
def no_file_beyond(size: int):
    """Writing more than ``size`` bytes to one file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    with no_file_beyond(10_000), pytest.raises(OSError, match=r"too large|No space"):
        saved(tmp_path, 3, width=10_000)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step-00000001", "step-00000002"}
    assert checkpoint.latest(tmp_path).step == 2
    saved(tmp_path, 3, width=10_000)
    assert checkpoint.latest(tmp_path).step == 3


def test_a_kill_while_weights_are_written_does_not_prevent_the_next(tmp_path):
    partial = tmp_path / "step-00000003.partial"
    partial.mkdir()
    (partial / ".tmpAb3xYz").write_bytes(b"half")  # safetensors begins with such a file
    saved(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert not list(tmp_path.glob("*/.tmp*"))


def test_a_snapshot_stays_while_training_goes_on():
    model = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    taken = checkpoint.snapshot(1, model, [optimizer], {})
    before = {k: v.clone() for k, v in (taken.model | taken.optimizer).items()}
    optimizer.step()
    assert not torch.equal(model.weight, taken.model["weight"])
    assert all(torch.equal((taken.model | taken.optimizer)[k], v) for k, v in before.items())


class Slow:
    """Stands for a disk: what is stored waits until it is released."""

    def __init__(self, monkeypatch):
        self.started, self.released = threading.Event(), threading.Event()
        write = checkpoint.write

        def slow(*arguments):
            self.started.set()
            assert self.released.wait(60)
            write(*arguments)

        monkeypatch.setattr(checkpoint, "write", slow)


def test_writing_does_not_hold_up_the_caller(tmp_path, monkeypatch):
    disk, writer = Slow(monkeypatch), checkpoint.BackgroundWriter(tmp_path, "toy")
    writer.store(checkpoint.Checkpoint(1, {}, {"w": torch.ones(2)}, {}))
    assert disk.started.wait(60)
    assert checkpoint.latest(tmp_path) is None, "the call has returned, nothing is on disk"
    disk.released.set()
    writer.wait()
    assert checkpoint.latest(tmp_path).step == 1


def test_a_full_disk_is_told_in_one_line(tmp_path, caplog):
    writer = checkpoint.BackgroundWriter(tmp_path, "toy")
    with no_file_beyond(10_000):
        writer.store(checkpoint.Checkpoint(7, {}, {"w": torch.ones(10_000)}, {}))
        writer.wait()
    (line,) = caplog.messages
    assert line.startswith("toy: no checkpoint of step 7 could be written: ")
    assert checkpoint.list_steps(tmp_path) == []
