"""``--batch-size auto``, on a stand-in for a GPU's free memory."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import train as train_module
from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.manifest import write_recorded
from ivcl_fast.training import batch_size
from ivcl_fast.training import run as run_module
from ivcl_fast.training.batch_size import (
    FLOPS,
    LAUNCH,
    LAUNCHES,
    MEMORY,
    ONCE,
    PASSES,
    SHARE,
    STEPS,
    choose,
    useful_clips,
    with_batch_size,
)
from ivcl_fast.training.memory import fake_stages, stage_flops
from ivcl_fast.training.run_folder import check_folder
from ivcl_fast.training.settings import CONFIG, TrainConfig, as_json
from tests.support.small_models import config as small_model

LONG = dict(pretrain_clips=10**9, finetune_clips=10**9)
RUN = TrainConfig().replace(model=small_model(), batch_size="auto", **LONG)
MB = 10**6


class Step:
    """A step that takes 1 MB, and as many more for every clip."""

    update_flops, weights = 10**9, MB

    def __init__(self, per_clip: int) -> None:
        self.per_clip = per_clip

    def most_clips(self, limits, bf16, keep_gradients):
        clip = self.per_clip * (1 if bf16 else 2) * (2 if keep_gradients else 1)
        return [max(0, limit // MB - 1) // clip for limit in limits]


@pytest.fixture
def stages(monkeypatch):
    """Stand-ins for the stages; no batch is so large that another makes nothing faster."""

    def fake_stages(config):
        for stage, classes, per_clip in (("pretrain", None, 1), ("finetune", 36, 3)):
            if config.stages.stage in ("all", stage):
                yield stage, classes, Step(per_clip)

    monkeypatch.setattr(batch_size, "fake_stages", fake_stages)
    monkeypatch.setattr(batch_size, "useful_clips", lambda step, flops: 1e9)


def test_the_largest_power_of_two_that_fits(monkeypatch):
    """By the predictions for the run itself, here on two GPUs with two parts each."""
    monkeypatch.setattr(batch_size, "useful_clips", lambda step, flops: 1e9)
    run, free = RUN.replace(stage="finetune", grad_accum_steps=2), 20 * MB
    chosen, _ = choose(run, 2, free, bf16=True)
    assert chosen % 4 == 0 and (chosen // 4).bit_count() == 1 and chosen > 8
    for _, _, step in fake_stages(run):
        fits, no_more = (
            step.memory(clips, keep_gradients=True).peak
            for clips in (chosen // 2, chosen)  # of one GPU, and twice as many
        )
        assert fits <= SHARE * free < no_more


@pytest.mark.parametrize(
    ("settings", "ranks", "bf16", "clips"),
    [
        ({}, 1, True, 128),  # 399 MB for 3 MB a clip
        ({"stage": "pretrain"}, 1, True, 256),
        ({}, 1, False, 64),
        ({}, 3, True, 3 * 64),  # which hold their gradients
        ({"grad_accum_steps": 3}, 1, True, 3 * 32),
    ],
    ids=str,
)
def test_what_counts(settings, ranks, bf16, clips, stages):
    chosen, reason = choose(RUN.replace(**settings), ranks, 500 * MB, bf16)
    assert chosen == clips and "fit 80% of the 0.5 GB that are free" in reason
    assert "twice as many do not fit" in reason
    assert ("on each GPU" in reason) == (ranks > 1)


def test_no_larger_than_makes_training_faster(stages, monkeypatch):
    monkeypatch.setattr(batch_size, "useful_clips", lambda step, flops: 100.0 / step.per_clip)
    clips, reason = choose(RUN, 1, 10**12, bf16=True)
    assert clips == 128 and "hardly faster" in reason


def test_what_a_step_does_once_is_a_small_share_of_it():
    once = 10**9 / FLOPS + PASSES * MB / MEMORY + LAUNCHES * LAUNCH
    clips = useful_clips(Step(1), 10**9)  # type: ignore[arg-type]
    assert once / (once + clips * 10**9 / FLOPS) == pytest.approx(ONCE)


def test_muon_is_part_of_what_a_step_does_once():
    (with_muon,), (without,) = (
        [step.update_flops for _, _, step in fake_stages(RUN.replace(**settings))]
        for settings in (
            {"stage": "pretrain"},
            {"stage": "pretrain", "optimizer": "adamw"},
        )
    )
    assert with_muon > without == 0
    assert stage_flops(RUN.model, None) != stage_flops(RUN.model, 36)


def test_every_stage_keeps_its_steps(stages):
    run = RUN.replace(finetune_clips=70 * STEPS)
    clips, reason = choose(run, 1, 10**12, bf16=True)
    assert clips == 64 and f"fewer than {STEPS} steps" in reason
    assert choose(run.replace(grad_accum_steps=2), 1, 10**12, bf16=True)[0] == 64
    assert choose(run.replace(stage="pretrain"), 1, 10**12, bf16=True)[0] > 64
    assert choose(RUN.replace(finetune_clips=10), 1, 10**12, bf16=True)[0] == 16


def test_a_gpu_that_is_full_is_refused(stages):
    with pytest.raises(UserError, match=r"^--batch-size: auto finds no room, .* 80% of the 0.0 GB"):
        choose(RUN, 1, MB, bf16=True)


@pytest.mark.parametrize(("ranks", "accum", "clips"), [(1, 1, 16), (4, 2, 16), (3, 1, 15)])
def test_a_cpu_gets_the_default(ranks, accum, clips, monkeypatch):
    chosen, reason = choose(RUN.replace(grad_accum_steps=accum), ranks, None, bf16=True)
    assert chosen == clips and "default" in reason
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    assert distributed.local_batch_size(chosen, accum) == clips // ranks


def test_one_line_tells_the_number_the_memory_and_the_rates(stages, monkeypatch, capsys):
    asked = []

    def mem_get_info(device):
        asked.append(device)
        return 2000 * MB, 10**12  # bytes that are free, and all

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(distributed, "min_over_ranks", lambda free: free // 4)
    device = torch.device("cuda", 1)
    run = with_batch_size(RUN.replace(lr_scaling="sqrt", lr=1e-3), device, bf16=True)
    assert asked == [device] and run.optim.batch_size == 128
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "--batch-size auto: 128 clips per step, where 133 fit 80% of the 0.5 GB that are free; "
        "twice as many do not fit. Peak learning rates with --lr-scaling sqrt: --lr 0.00283, "
        "--finetune-lr 0.00849"
    )
    assert with_batch_size(run, device, bf16=True) is run and not capsys.readouterr().out


def test_the_same_command_continues_with_the_number_of_the_run(tmp_path, monkeypatch):
    run = RUN.replace(out=tmp_path, name="run")
    (run.folder / "pretrain" / "checkpoints" / "step-1").mkdir(parents=True)
    write_recorded(run.folder / CONFIG, as_json(run.replace(batch_size=8)))
    assert check_folder(run).optim.batch_size == 8
    with pytest.raises(UserError, match=r"other settings \(batch_size, lr\)"):
        check_folder(run.replace(lr=1.0))
    anew = run.replace(overwrite=True)
    assert check_folder(anew).optim.batch_size == "auto"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert check_folder(anew).optim.batch_size == 8, "torchrun restarted it"


def test_the_memory_is_measured_when_the_frame_store_has_its_part(tmp_path, monkeypatch):
    opened = []

    def open_data(*args, **options):
        opened.append("data")
        raise UserError("no more is needed")

    monkeypatch.setattr(run_module, "open_data", open_data)
    monkeypatch.setattr(train_module, "with_batch_size", lambda *_: opened.append("batch size"))
    with pytest.raises(UserError, match="no more is needed"):
        train_module.train(RUN.replace(out=tmp_path, device="cpu"))
    assert opened == ["data"]
