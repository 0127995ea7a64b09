"""Settings as flags and files give them."""

from __future__ import annotations

import pytest
from torch.distributed.run import get_args_parser

from ivcl_fast import train
from ivcl_fast.config import IVCLConfig
from ivcl_fast.errors import UserError
from ivcl_fast.models.ivcl import IVCL, SlotAutoencoder
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.settings import TrainConfig, load_settings, write_settings
from tests.support.short_run import ROOT


def test_query_frames_are_at_most_the_frames_of_a_clip():
    for flags, frames, query_frames in (
        ([], 16, 8), (["--num-frames", "4"], 4, 4), (["--num-frames=12"], 12, 8),
        (["--num_frames", "4"], 4, 4),
        (["--num-frames", "4", "--num-query-frames", "2"], 4, 2), (["--data", "acre:x"], 7, 4),
        (["--data", "acre:x", "--num-frames", "1"], 1, 1),
    ):  # fmt: skip
        model = parse(flags).model
        assert (model.num_frames, model.num_query_frames) == (frames, query_frames)


ODD = dict(
    image_size=24, patch_size=4, num_slots=3, embed_dim=16, num_heads=2, depth=1, temporal_depth=3,
    mlp_ratio=2.0, pixel_mean=0.4, pixel_std=0.3,
)  # fmt: skip
"""Sizes of no preset, other than those that the weights of a decoder have."""


def test_sizes_are_those_of_the_weights_to_start_from(tmp_path):
    decoder = dict(num_frames=4, num_query_frames=2, decoder_dim=8, decoder_heads=2, norm_pix=False)
    model = IVCL(IVCLConfig(**ODD, **decoder, objective="mae"))
    model.save_pretrained(tmp_path, training={"preset": "small"})
    start = ["--stage", "finetune", "--init", str(tmp_path)]
    assert parse(start).preset == "small"
    assert parse(start).model == IVCLConfig.preset("small", **ODD), "and what else its preset says"
    given = parse([*start, "--num-slots", "5", "--temporal-depth=1"]).model
    assert given == IVCLConfig.preset("small", **ODD | dict(num_slots=5, temporal_depth=1))
    assert parse([*start, "--preset", "tiny"]).model == IVCLConfig(), "all as it says"
    panels = parse([*start, "--data", "acre:x"]).model
    assert panels == IVCLConfig.preset("small", **ODD, num_frames=7, num_query_frames=4)
    (tmp_path / "config.json").unlink()
    assert parse(start) == parse([*start, "--preset", "tiny"]), "nothing says their sizes"


@pytest.mark.parametrize("objective", ["joint", "slot_attention"])
def test_an_encoder_of_its_own_comes_with_the_weights(objective, tmp_path):
    kind = SlotAutoencoder if objective == "slot_attention" else IVCL
    kind(IVCLConfig(**ODD, objective=objective)).save_pretrained(tmp_path)
    start = ["--stage", "finetune", "--init", str(tmp_path)]
    assert parse(start).model == IVCLConfig(**ODD, objective=objective)
    assert parse([*start, "--objective", "ivcl"]).model == IVCLConfig(**ODD)


def test_settings_are_read_as_they_were_written(tmp_path):
    config = parse(["--data", "acre:x", "--lr", "0.5", "--name", "run", "--out", str(tmp_path)])
    config.folder.mkdir()
    write_settings(config)
    assert load_settings(config.folder) == config


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--epochs", "--pretrain-clips"), ("--max-steps", "--pretrain-clips"),
        ("--learning_rate=1", "--lr"),
    ],
)  # fmt: skip
def test_flags_of_other_programs_are_answered_with_ours(typed, meant):
    with pytest.raises(UserError, match=f": expected {meant} and"):
        parse([typed, "3"])


@pytest.mark.parametrize("flag", ["-h", "--help", "--help-all"])
def test_help_shows_the_first_flags_and_on_request_all(flag, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse([flag, "--preset", "base64"], train.__doc__)
    text = capsys.readouterr().out
    assert text.index("--data cater:DIR --preset base64  #") < text.index("--batch-size INT")
    assert "(default: base64)" in " ".join(text.replace("│", "").split())
    assert ("--clip-norm FLOAT" in text) == (flag == "--help-all")
    assert len(text.splitlines()) < (300 if flag == "--help-all" else 120)


def test_settings_of_another_run_are_a_start(tmp_path):
    """All but its folder; a run on other data has another task."""
    flags = ["--lr", "0.5", "--depth", "3", "--data", "acre:x", "--seed", "7", "--no-pictures"]
    before = parse([*flags, "--name", "old", "--out", str(tmp_path)])
    before.folder.mkdir()
    write_settings(before)
    file = str(before.folder / "config.json")
    assert parse(["--config", file]) == parse(flags)
    assert parse([f"--config={before.folder}", "--lr", "0.1"]) == parse([*flags, "--lr", "0.1"])
    moved = parse(["--config", file, "--data", "cater:x", "--num-frames", "8"])
    assert (moved.data.task, moved.optim.lr, moved.model.depth) == ("localize", 0.5, 3)
    for other, flag in (
        (("--preset", "small"), "preset"),
        (("--resume", str(before.folder)), "config"),
    ):
        with pytest.raises(UserError, match=f"^--{flag}: expected"):
            parse(["--config", file, *other])
    with pytest.raises(UserError, match="expected the settings of a run"):
        parse(["--config", str(tmp_path / "none.json")])


def test_a_file_may_hold_some_settings(tmp_path):
    """The others have their defaults; --quick shortens every part."""
    recipe = ["--config", str(ROOT / "examples" / "cater_tiny.json")]
    flags = ["--mirror", "--freeze-encoder", "--pretrain-clips", "16000"]
    flags += ["--last-frame-clips", "30000", "--finetune-clips", "30000"]
    assert parse(recipe) == parse(flags)
    assert parse([*recipe, "--quick"]) == parse(["--quick", "--mirror", "--freeze-encoder"])


@pytest.mark.parametrize("readout", ["mean", "cls"])
def test_labels_of_all_frames_need_an_answer_for_each_frame(readout):
    with pytest.raises(UserError, match=r"^--frame-labels: expected --readout last"):
        parse(["--frame-labels", "--readout", readout])


def test_torchrun_takes_no_flag_for_one_of_its_own():
    """Its parser sees the flags of a command too, and completes abbreviations."""
    options = {o for action in get_args_parser()._actions for o in action.option_strings}
    for name in TrainConfig().flat():
        flag = "--" + name.replace("_", "-")
        assert not [option for option in options if option.startswith(flag)], flag
