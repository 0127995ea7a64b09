"""Checkpoints: damage, pickles and full disks."""

from __future__ import annotations

import pickle
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ivcl_fast.errors import UserError
from ivcl_fast.models.weights import CHECKSUMS, MODEL, read_weights, write_checksums
from ivcl_fast.training import checkpoint
from ivcl_fast.training.run_folder import CHECKPOINTS, is_finished


def saved(folder: Path, step: int = 1, width: int = 5) -> Path:
    model = nn.Linear(width, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    return checkpoint.store(folder, checkpoint.snapshot(step, model, [optimizer], {}))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def test_a_stage_that_was_killed_while_it_saved_its_model_is_not_finished(tmp_path):
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / MODEL).write_bytes(b"half")
    assert not is_finished(tmp_path)
    write_checksums(tmp_path, [MODEL])
    assert is_finished(tmp_path)


@pytest.mark.parametrize("name", [*checkpoint.FILES, CHECKSUMS])
def test_a_damaged_checkpoint_is_skipped_and_deleted(tmp_path, name, caplog):
    for step in (5, 10):
        saved(tmp_path, step)
    flip_a_bit(tmp_path / "step-00000010" / name)
    (tmp_path / "step-00000011.partial").mkdir()  # of a process that was killed
    assert checkpoint.latest(tmp_path).step == 5
    assert "does not match its checksum" in caplog.text
    saved(tmp_path, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000008"]


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
    saved(tmp_path, 2)
    large = checkpoint.Checkpoint(7, {}, {"w": torch.ones(10_000)}, {})
    with no_file_beyond(10_000), pytest.raises(OSError, match="large"):
        checkpoint.store(tmp_path, large)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
