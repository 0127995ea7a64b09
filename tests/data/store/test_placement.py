"""Choice of the place of a store, by its size and the free memory."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.data.store import placement
from ivcl_fast.data.store.placement import available_memory, choose_placement
from ivcl_fast.errors import UserError

GB = 10**9
GPU = torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """80 GB of GPU memory and 100 GB of RAM are free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * GB, 80 * GB))
    monkeypatch.setattr(placement, "available_memory", lambda: 100 * GB)


@pytest.mark.parametrize(
    ("size", "device", "place", "reason"),
    [
        (20, GPU, "gpu", "which has 80.0 GB free"),
        (40, GPU, "ram", "where 100.0 GB are free"),
        (60, GPU, "disk", "because only 100.0 GB of memory are free"),
        (20, torch.device("cpu"), "ram", "where 100.0 GB are free"),
        (60, None, "disk", "because only 100.0 GB of memory are free"),
    ],
)
def test_auto(machine, size, device, place, reason):
    assert choose_placement("auto", size * GB, device) == (place, reason)


@pytest.mark.parametrize(("step", "place"), [(0, "gpu"), (52, "gpu"), (53, "ram"), (90, "ram")])
def test_auto_leaves_a_training_step_its_memory(machine, step, place):
    """Of 80 GB, a step and a store of 20 may take 72."""
    assert choose_placement("auto", 20 * GB, GPU, lambda: step * GB)[0] == place


def test_ranks_share_the_memory(machine, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert choose_placement("auto", 20 * GB)[0] == "disk"
    assert choose_placement("auto", 6 * GB)[0] == "ram"


def test_too_little_memory_is_one_line(machine):
    for wanted in ("ram", "gpu"):
        with pytest.raises(UserError, match=rf"--placement: .* got {wanted}"):
            choose_placement(wanted, 1000 * GB, GPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group", "listed", "limit", "used", "found"),
    [
        ("", "/", "max", 7, 90),
        ("", "/", 40, 7, 35),
        ("slurm/job_7", "/slurm/job_7/task_0", 95, 3, 90),
        ("slurm/job_7", "/slurm/job_7/task_0", 40, 50, 0),
    ],
)
def test_memory_within_a_limit(tmp_path, monkeypatch, group, listed, limit, used, found):
    """Of what it uses, 2 GB are files that the system can drop."""
    folder = tmp_path / "sys" / "fs" / "cgroup" / group
    folder.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"0::{listed}\n")
    available = f"MemTotal: 9 kB\nMemAvailable: {90 * GB // 1024} kB\n"
    (tmp_path / "proc" / "meminfo").write_text(available)
    (folder / "memory.max").write_text("max" if limit == "max" else str(limit * GB))
    (folder / "memory.current").write_text(str(used * GB))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GB}\n")
    monkeypatch.setattr(placement, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert available_memory() == pytest.approx(found * GB)
