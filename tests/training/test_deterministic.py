"""``--deterministic``: the same bits again, and every op of a step can give them.

On a CPU algorithms repeat anyway, but some depend on the number of threads.
"""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch

from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig
from ivcl_fast.training.hardware import DETERMINISTIC_THREADS, enable_determinism
from ivcl_fast.training.optim import Schedule, make_optimizers

ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TORCHINDUCTOR_DETERMINISTIC": "1"}
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture
def deterministic():
    fill = torch.utils.deterministic.fill_uninitialized_memory
    threads = torch.get_num_threads()
    with mock.patch.dict(os.environ):
        for name in ENVIRONMENT:
            os.environ.pop(name, None)
        enable_determinism()
        yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_num_threads(threads)


def trained(kind: str, device: str, image_size: int) -> list[torch.Tensor]:
    """Weights after three steps; above 128 patches attention is the library's."""
    torch.manual_seed(0)
    cfg = IVCLConfig(image_size=image_size, num_frames=4, num_query_frames=2, depth=1)
    model = (IVCL(cfg) if kind == "pretrain" else IVCLClassifier(cfg, 5)).to(device)
    optimizers = make_optimizers(model, Schedule(1, optimizer="muon"))
    draw = torch.Generator().manual_seed(1)
    for step in range(3):
        video = torch.randint(256, (4, 4, 3, image_size, image_size), generator=draw)
        video = video.to(device, torch.uint8)
        with torch.autocast(device, torch.bfloat16):
            if kind == "pretrain":
                loss = model(video, seed=torch.arange(4, device=device) + step).loss
            else:
                labels = torch.arange(4, device=device)
                loss = torch.nn.functional.cross_entropy(model(video).float(), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind, image_size", [("pretrain", 128), ("finetune", 64)])
def test_training_repeats_bit_for_bit(deterministic, kind, image_size, device):
    first, second = trained(kind, device, image_size), trained(kind, device, image_size)
    assert all(map(torch.equal, first, second))
    assert all(parameter.isfinite().all() for parameter in first)


def test_any_number_of_threads_gives_the_same_bits(deterministic):
    expected = trained("pretrain", "cpu", 64)
    for threads in (1, 16):  # as OMP_NUM_THREADS, or a machine with so many cores, sets
        torch.set_num_threads(threads)
        enable_determinism()
        assert torch.get_num_threads() == DETERMINISTIC_THREADS
        assert all(map(torch.equal, trained("pretrain", "cpu", 64), expected))
