"""Settings as flags and files give them, those of earlier versions too."""

from __future__ import annotations

import json

import pytest
from torch.distributed.run import get_args_parser

from ivcl_fast.errors import UserError
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.settings import TrainConfig, as_json, flatten, load_settings


def test_query_frames_are_at_most_the_frames_of_a_clip():
    for flags, frames, query_frames in (
        ([], 16, 8), (["--num-frames", "4"], 4, 4), (["--num-frames=12"], 12, 8),
        (["--num_frames", "4"], 4, 4),
        (["--num-frames", "4", "--num-query-frames", "2"], 4, 2), (["--data", "acre:x"], 7, 4),
        (["--data", "acre:x", "--num-frames", "1"], 1, 1),
    ):  # fmt: skip
        model = parse(flags).model
        assert (model.num_frames, model.num_query_frames) == (frames, query_frames)


def test_settings_of_version_0_1_0_are_read(tmp_path):
    saved = as_json(parse(["--loader", "stream", "--grad-accum-steps", "4"]))
    old = {"accum": saved.pop("grad_accum_steps"), "labelled": saved.pop("label_fraction")}
    for name in ("loader", "zero_init", "last_frame_clips", "whole_clip_lr_scale"):
        saved.pop(name)
    (tmp_path / "config.json").write_text(json.dumps(saved | old | {"feed": "dali"}))
    config = load_settings(tmp_path)
    assert (config.data.loader, config.optim.grad_accum_steps) == ("stream", 4)
    assert (config.optim.zero_init, config.optim.whole_clip_lr_scale) == (False, 1)
    assert config.stages.last_frame_clips == 0, "as it was then, if it is continued"


@pytest.mark.parametrize("readout", ["mean", "cls"])
def test_labels_of_all_frames_need_an_answer_for_each_frame(readout):
    with pytest.raises(UserError, match=r"^--frame-labels: .*accepted with it: --readout last"):
        parse(["--frame-labels", "--readout", readout])


def test_torchrun_takes_no_flag_for_one_of_its_own():
    """Its parser sees the flags of a command too, and completes abbreviations."""
    options = {o for action in get_args_parser()._actions for o in action.option_strings}
    for name in flatten(TrainConfig()):
        flag = "--" + name.replace("_", "-")
        assert not [option for option in options if option.startswith(flag)], flag
