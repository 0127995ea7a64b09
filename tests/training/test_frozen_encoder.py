"""Finetuning with a frozen encoder: the slots that it computes once stand for the clips."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.data.slots import Slots
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import encode
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run import Run
from tests.training.test_last_frame import SIZES, run_with

FROZEN = dict(last_frame_clips=8, finetune_clips=8, freeze_encoder=True)


def encode_split(run: Run, split: str = "train") -> Slots:
    loader = run.data.loader(split, batch_size=4, num_frames=4, seed=0, training=False)
    return encode(run.classifier(), loader, torch.device("cpu"), amp=False)


def slot_loader(run: Run, slots: Slots, **options):
    plain = dict(batch_size=2, num_frames=4, seed=0, training=True)
    return run.data.loader("train", slots=slots, **plain | options)


def rows_by_clip(loader, epoch: int = 0) -> dict[int, torch.Tensor]:
    return {
        clip: row
        for batch in loader.epoch(epoch)
        for clip, row in zip(batch.clip_ids.tolist(), batch.rows, strict=True)
    }


def test_slots_answer_as_their_clips_do(tmp_path):
    run = run_with(tmp_path, name="run")
    torch.manual_seed(0)
    model = run.classifier()
    whole = run.data.loader("train", batch_size=3, num_frames=4, seed=0, training=False)
    slots = encode(model, whole, torch.device("cpu"), amp=False)
    on_slots = slot_loader(run, slots, batch_size=3, training=False)
    for clips, encoded in zip(whole.epoch(0), on_slots.epoch(0), strict=True):
        assert torch.equal(clips.clip_ids, encoded.clip_ids)
        assert torch.equal(clips.labels, encoded.labels)
        assert encoded.rows.shape == (3, 4, model.cfg.num_slots, model.cfg.embed_dim)
        assert torch.allclose(model(clips.rows), model(encoded.rows), atol=1e-6)


def test_noise_is_of_the_slots_deviation_and_of_epoch_and_clip_alone(tmp_path):
    run = run_with(tmp_path, name="run")
    slots = encode_split(run)
    clean, noisy = slot_loader(run, slots), slot_loader(run, slots, slot_noise=2.0)
    plain, first = rows_by_clip(clean), rows_by_clip(noisy)
    assert plain.keys() == first.keys() == set(range(6))
    differences = torch.stack([first[clip] - plain[clip] for clip in plain])
    assert differences.std().item() == pytest.approx(2 * slots.values.std().item(), rel=0.1)
    assert abs(differences.mean()) < 0.1 * differences.std()
    again, second = rows_by_clip(noisy), rows_by_clip(noisy, epoch=1)
    assert all(torch.equal(again[clip], first[clip]) for clip in first)
    assert not any(torch.equal(second[clip], first[clip]) for clip in first)
    measured = rows_by_clip(slot_loader(run, slots, slot_noise=2.0, training=False))
    assert all(torch.equal(measured[clip], plain[clip]) for clip in plain)


@pytest.fixture
def pretrained(tmp_path) -> str:
    """The folder of a model to start from."""
    model = IVCL(IVCLConfig(**SIZES))
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_encoder_stays_and_the_rest_learns(tmp_path, pretrained):
    run = run_with(tmp_path, name="run", init=pretrained, frame_labels=True, **FROZEN)
    after = run.finetune(pretrained).state_dict()
    before = run.last_frame(pretrained).state_dict()
    for name, value in after.items():
        same = torch.equal(value[-1:], before[name][-1:])
        assert same == name.startswith("encoder."), name
    rates = {r["stage"]: r["lr"] for r in run.metrics.read() if "lr" in r}
    assert rates.keys() == {"last-frame", "finetune"}
    assert rates["finetune"] == rates["last-frame"]


def test_random_weights_all_learn(tmp_path, pretrained):
    run = run_with(tmp_path, name="run", init=pretrained, **FROZEN)
    after = run.finetune("random").state_dict()
    before = run.last_frame("random").state_dict()
    assert not torch.equal(after["encoder.slot_tokens"], before["encoder.slot_tokens"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--objective", "joint"], ["--stage", "finetune"],
        ["--objective", "slot_attention", "--stage", "finetune", "--init", "timm:vit.safetensors"],
        ["--slot-noise", "-1"],
    ],
)  # fmt: skip
def test_flags_that_cannot_be_used_with_it(flags):
    with pytest.raises(UserError, match=r"^--.*: expected"):
        parse(["--freeze-encoder", *flags])
