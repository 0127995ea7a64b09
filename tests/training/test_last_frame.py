"""Finetuning that sees last frames first continues their model."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig
from ivcl_fast.data.formats.cater_frames import snitch_cell
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.models import backbone
from ivcl_fast.training.loop import Stage
from ivcl_fast.training.run import Run
from ivcl_fast.training.settings import TrainConfig

SIZES = dict(
    image_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=1, decoder_dim=16,
    decoder_heads=2, decoder_depth=1, temporal_depth=1, num_frames=4, num_query_frames=1,
)  # fmt: skip


@pytest.mark.parametrize("objective", ["ivcl", "joint"])
def test_a_model_of_clips_takes_all_but_the_times_of_other_frames(objective):
    cfg = IVCLConfig(objective=objective, **SIZES)
    single = IVCLClassifier(dataclasses.replace(cfg, num_frames=1), 3).state_dict()
    model = IVCLClassifier(cfg, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    backbone.load_last_frame(model, {key: value + 1 for key, value in single.items()})
    for key, value in model.state_dict().items():
        if key.endswith("time_embed"):
            assert torch.equal(value[:-1], before[key][:-1])
            value = value[-1:]
        assert torch.equal(value, single[key] + 1), key


def run_with(tmp_path, **settings) -> Run:
    data = write_dataset(tmp_path / "data", SyntheticCater(train=6, val=2), 1)
    plain = dict(
        source=f"cater:{data}", task="localize", model=IVCLConfig(**SIZES), device="cpu",
        stage="finetune", batch_size=2, finetune_clips=4, out=tmp_path, pictures=False,
        workers=1,
    )  # fmt: skip
    run = Run(TrainConfig().replace(**(plain | settings)))
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def test_finetuning_continues_the_model_of_last_frames(tmp_path):
    # Steps too small to be seen, so that finetuning has to end where it began.
    run = run_with(tmp_path, name="run", finetune_lr=1e-30, last_frame_clips=2)
    model = run.finetune("random")
    rates = {r["stage"]: r["lr"] for r in run.metrics.read() if "lr" in r}
    assert rates["finetune"] == pytest.approx(0.3 * rates["last-frame"])
    first = run.last_frame("random").state_dict()
    assert torch.equal(model.head.weight, first["head.weight"])


def test_how_many_last_frames(tmp_path):
    run = run_with(tmp_path, name="localize")
    assert (run.last_frame_clips("a model"), run.last_frame_clips("random")) == (16, 0)
    actions = run_with(tmp_path, name="actions", task="actions_present")
    assert actions.last_frame_clips("a model") == 0


@pytest.mark.parametrize("frame_labels", [False, True])
def test_single_frames_are_any_where_all_have_labels(tmp_path, frame_labels):
    run = run_with(tmp_path, name="run", frame_labels=frame_labels)
    loader = run._training_loader("last-frame", 1)
    batches = [batch for epoch in range(12) for batch in loader.epoch(epoch)]
    for number, clip in enumerate(loader.clips):
        scene, frames = run.data.scene(clip.name), run.data.rows([clip], 38)[0]
        of_clip = [
            (batch, batch.clip_ids.tolist().index(number))
            for batch in batches
            if number in batch.clip_ids
        ]
        seen = set()
        for batch, row in of_clip:
            equal = (frames == batch.rows[row]).flatten(1).all(1).nonzero().flatten().tolist()
            seen.add(equal[-1])
            cells = {snitch_cell(scene, frame) for frame in equal}
            assert batch.labels[row].item() in cells
        assert len(seen) > 4 if frame_labels else seen == {37}


def test_a_schedule_has_all_that_was_set(tmp_path, monkeypatch):
    """Stages are described here, and not trained."""
    started = {}
    monkeypatch.setattr(Stage, "run", lambda stage: started.update({stage.name: stage.schedule}))
    monkeypatch.setenv("WORLD_SIZE", "2")  # rates count the clips of all ranks
    settings = dict(
        batch_size=4, grad_accum_steps=2, warmup_steps=3, weight_decay=0.1, clip_norm=2.0,
        optimizer="adamw",
    )  # fmt: skip
    rates = dict(lr=1e-2, finetune_lr=2e-2, lr_scaling="linear", backbone_lr_scale=0.25)
    IVCL(IVCLConfig(**SIZES)).save_pretrained(tmp_path / "weights")
    run = run_with(
        tmp_path, name="run", stage="all", pretrain_clips=8, last_frame_clips=0, **settings, **rates
    )
    run.pretrain()
    schedules = [started["pretrain"]]
    for init in ("random", str(tmp_path / "weights")):
        run.finetune(init)
        schedules.append(started["finetune"])
        shutil.rmtree(tmp_path / "run" / "finetune")
    for schedule in schedules:
        assert {name: getattr(schedule, name) for name in settings} == settings
    assert [schedule.clips for schedule in schedules] == [8, 4, 4]
    assert [schedule.lr for schedule in schedules] == [1e-2 / 4, 2e-2 / 4, 2e-2 / 4]
    assert [schedule.backbone_lr_scale for schedule in schedules] == [1, 1, 0.25]
