"""The runs that a study plans: lengths, seeds, shared pretrainings, folders."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from ivcl_fast.errors import UserError
from ivcl_fast.studies.definitions import STUDIES
from ivcl_fast.studies.runner import Job, check_flags, plan_jobs, run_jobs, variant_folder
from ivcl_fast.training.arguments import parse


def test_budgets_are_equal_and_seeds_differ():
    """But random weights, without pretraining, are finetuned for longer."""
    study = STUDIES["supervision"]
    first, then = plan_jobs(study, Path("x"), 3, study.flags(("--finetune-clips", "77")))
    assert [job.folder.parent.name for job in first] == [
        "iv-cl", "image-mae", "supervised-attributes", "supervised-detection"
    ]  # fmt: skip
    assert first[0].results == ("pretrain/model.safetensors", "report.md")
    configs = [parse(job.arguments) for job in then]
    assert [c.stages.finetune_clips for c in configs] == [77] * 12 + [154] * 3
    assert [c.seed for c in configs] == [0, 1, 2] * 5
    assert [c.stages.init for c in configs[-3:]] == ["random"] * 3
    objectives = [parse(job.arguments).model.objective for job in first]
    assert objectives == ["ivcl", "mae", "classification", "detection"]
    assert {c.model.objective for c in configs} == {"ivcl"}
    assert [c.stages.compare_memoryless for c in configs] == [True] * 3 + [False] * 12


def test_a_frozen_encoder_has_more_clips():
    """But not that of random weights."""
    study = STUDIES["pretraining"]
    _, then = plan_jobs(study, Path("x"), 1, study.flags(("--finetune-clips", "77")))
    stages = [parse(job.arguments).stages for job in then]
    assert [s.finetune_clips for s in stages] == [462, 462, 77]
    assert [s.freeze_encoder for s in stages] == [True, True, False]


def test_slots_that_hold_objects_are_left_as_they_are():
    """All rows but the one whose slots compete have the same model; all have the same labels, and
    see as many frames, and slots of clips."""
    study = STUDIES["objects"]
    first, then = plan_jobs(study, Path("x"), 1, study.flags(()))
    rows = [parse(job.arguments) for job in first]
    competing, ours = rows.pop(2), rows[0]
    assert competing.model.objective == "slot_attention" and competing.model.num_frames == 4
    assert competing.stages == ours.stages
    assert [row.model.objective for row in rows] == ["ivcl", "mae", "objects"]
    for row in rows:
        assert replace(row.model, objective="ivcl") == ours.model and row.model.num_frames == 4
        assert (row.optim, row.stages) == (ours.optim, ours.stages)
    rows = [parse(job.arguments) for job in then]
    ours, competing = rows[0], rows[2]
    assert ours.model.num_frames == 16 and ours.model.num_slots == 9
    assert competing.model.temporal_depth == ours.model.temporal_depth
    assert ours.stages.frame_labels and ours.stages.freeze_encoder
    assert [row.stages.last_frame_clips for row in rows] == [96_000, 96_000, 0, 0]
    differ = {"init", "last_frame_clips", "compare_memoryless"}
    for row in rows:
        assert row.model == ours.model or row is competing
        assert row.optim == ours.optim
        settings = vars(row.stages).items() - vars(ours.stages).items()
        allowed = differ | {"slot_noise"} if row is competing else differ
        assert {name for name, _ in settings} <= allowed


def test_finetunings_start_from_the_pretrainings_in_turn():
    first, then = plan_jobs(STUDIES["slots"], Path("x"), 3, (), pretrainings=2)
    assert [job.folder.name for job in first] == ["pretrained", "pretrained-1"] * 5
    assert [parse(job.arguments).seed for job in first] == [0, 1] * 5
    starts = [Path(parse(job.arguments).stages.init).parent for job in then]
    assert starts == [job.folder for one, other in zip(first[::2], first[1::2], strict=True)
                      for job in (one, other, one)]  # fmt: skip
    assert [parse(job.arguments).seed for job in then] == [0, 1, 2] * 5


def test_a_study_has_its_own_budget_which_the_command_may_change():
    study = STUDIES["causes"]
    flags = study.flags(("--train-videos=7",))
    assert flags[-1] == "--train-videos=7" and "--train-videos" not in flags
    config = parse(flags)
    assert (config.stages.pretrain_clips, config.stages.finetune_clips) == (30_000, 120_000)
    assert (config.data.train_videos, config.data.val_videos) == (7, 1000)
    assert study.quick().flags(("--quick",)) == ("--batch-size", "4", "--quick")
    assert STUDIES["data"].flags(("--lr", "1")) == ("--lr", "1")


@pytest.mark.parametrize("flag", ["--pretrain-clips", "--train-videos=9", "--embed_dim"])
def test_a_flag_that_differs_between_variants_is_refused(flag):
    """It would be ignored. Without the lengths of its variants, a quick study accepts others."""
    study = STUDIES["scaling"]
    with pytest.raises(UserError, match=f"^{flag}: the study scaling sets this"):
        check_flags("scaling", study, ("--lr", "1", flag))
    check_flags("scaling", study.quick(), ("--pretrain-clips", "9", "--train-videos", "9"))


@pytest.mark.parametrize("name", STUDIES)
def test_each_quick_run_has_videos_for_a_batch(name):
    study = STUDIES[name].quick()
    for job in chain(*plan_jobs(study, Path("x"), 1, study.flags(("--quick",)))):
        config = parse(job.arguments)
        videos = round(config.stages.label_fraction * config.data.train_videos)
        assert videos >= config.optim.clips_per_step, job.folder


@pytest.mark.parametrize(
    ("name", "of_each"),
    [
        (
            "long",
            {
                "synthetic:moving": ["ivcl", "mae", "joint", "classification", "detection"],
                "synthetic": ["ivcl", "mae"],
            },
        ),
        ("causes", {f"synthetic:acre-{regime}": ["ivcl", "mae"] for regime in ("comp", "sys")}),
    ],
)
def test_all_tasks_of_a_data_set_share_its_pretraining(name, of_each):
    first, then = plan_jobs(STUDIES[name], Path("x"), 2, ())
    found: dict[str, list[str]] = {}
    for job in first:
        config = parse(job.arguments)
        found.setdefault(config.data.source, []).append(config.model.objective)
    assert found == of_each
    sources = {str(job.folder / "pretrain"): parse(job.arguments) for job in first}
    configs = [parse(job.arguments) for job in then]
    assert len(configs) == len({c.folder for c in configs}) == 2 * len(STUDIES[name].variants)
    assert {c.stages.init for c in configs} == sources.keys() | {"random"}
    for c in configs:
        assert c.model.num_frames == (7 if "acre" in c.data.source else 16)
        source = sources.get(c.stages.init)
        assert source is None or source.data.source == c.data.source


def test_folders_of_variants_differ():
    for study in STUDIES.values():
        assert len({variant_folder(v) for v in study.variants}) == len(study.variants)


def test_runs_in_one_process_do_not_share_the_number_of_their_graphs(tmp_path):
    """Graphs of an earlier run's models would count against the limit of a later one's."""
    from torch._dynamo import config as dynamo

    sizes = iter(range(2, 6))

    class Doubling(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    def train(config):
        part = Doubling()
        part.compile(fullgraph=True, dynamic=False, backend="eager")
        part(torch.ones(next(sizes)))

    jobs = [Job(tmp_path / str(number), (), ("report.md",)) for number in range(4)]
    torch.compiler.reset()
    with dynamo.patch(recompile_limit=2):
        run_jobs(jobs, 1, 0, train)
    assert next(sizes, None) is None
