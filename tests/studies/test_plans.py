"""The runs that a study plans: lengths, seeds, shared pretrainings, folders."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from ivcl_fast.errors import UserError
from ivcl_fast.studies.definitions import STUDIES, study_of_flag
from ivcl_fast.studies.runner import check_flags, plan_jobs, time_left, variant_folder
from ivcl_fast.training.arguments import parse


def test_budgets_are_equal_and_seeds_differ():
    """But random weights, without pretraining, are finetuned for longer."""
    study = STUDIES["supervision"]
    first, then = plan_jobs(study, Path("x"), 3, study.flags(("--finetune-clips", "77")))
    assert [job.folder.parent.name for job in first] == [
        "iv-cl", "image-mae", "supervised-attributes", "supervised-detection"
    ]  # fmt: skip
    configs = [parse(job.arguments) for job in then]
    assert [c.stages.finetune_clips for c in configs] == [77] * 12 + [154] * 3
    assert [c.seed for c in configs] == [0, 1, 2] * 5
    assert [c.stages.init for c in configs[-3:]] == ["random"] * 3
    objectives = [parse(job.arguments).model.objective for job in first]
    assert objectives == ["ivcl", "mae", "classification", "detection"]
    assert {c.model.objective for c in configs} == {"ivcl"}
    assert [c.stages.compare_memoryless for c in configs] == [True] * 3 + [False] * 12


def test_the_time_left_follows_from_the_clips(tmp_path):
    _, study = study_of_flag("num-slots=1,2,4,8,16")
    flags = study.flags(("--pretrain-clips", "1000", "--finetune-clips", "100"))
    first, then = plan_jobs(study, tmp_path, 2, flags)
    assert [job.clips for job in (*first, *then)] == [1000] * 5 + [100] * 10
    jobs = [*first, *then]
    assert time_left({first[0]: 50.0}, jobs, 1) == 4 * 50 + 10 * 5
    assert time_left(dict.fromkeys(first, 50.0), jobs, 2) == 10 * 5 / 2
    for job in then[1:]:  # done before the study continued
        job.folder.mkdir(parents=True)
        (job.folder / job.results[0]).touch()
    assert time_left({then[0]: 5.0}, jobs, 1) == 5 * 50


def test_finetunings_start_from_the_pretrainings_in_turn():
    _, study = study_of_flag("num-slots=1,2,4")
    first, then = plan_jobs(study, Path("x"), 3, (), pretrainings=2)
    assert [job.folder.name for job in first] == ["pretrained", "pretrained-1"] * 3
    assert [parse(job.arguments).seed for job in first] == [0, 1] * 3
    starts = [Path(parse(job.arguments).stages.init).parent for job in then]
    assert starts == [job.folder for one, other in zip(first[::2], first[1::2], strict=True)
                      for job in (one, other, one)]  # fmt: skip


def test_variants_share_an_equal_pretraining_of_their_data():
    first, then = plan_jobs(study_of_flag("label-fraction=0.1,1.0")[1], Path("x"), 1, ())
    assert len(first) == 1 and len(then) == 2
    first, then = plan_jobs(STUDIES["causes"], Path("x"), 2, ())
    sources = {str(job.folder / "pretrain"): parse(job.arguments).data.source for job in first}
    assert [*sources.values()] == ["synthetic:acre-comp"] * 2 + ["synthetic:acre-sys"] * 2
    first, _ = plan_jobs(STUDIES["compositional"], Path("x"), 1, ())
    tasks = [parse(job.arguments).data.task for job in first]
    assert tasks == ["compositional"] * 2 + ["compositional_shuffled"] * 2
    configs = [parse(job.arguments) for job in then]
    assert len({c.folder for c in configs}) == 12
    for c in configs:
        assert sources.get(c.stages.init, c.data.source) == c.data.source
        assert (c.data.task, c.model.num_frames) == ("acre", 7)


def test_compositional_finetunes_every_variant_alike():
    _, then = plan_jobs(STUDIES["compositional"], Path("x"), 1, ())
    stages = {replace(parse(job.arguments).stages, init="") for job in then}
    assert [one.freeze_encoder for one in stages] == [False]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("num_slots=2,4", ["--num-slots 2", "--num-slots 4"]),
        ("--compile=true,false", ["--compile", "--no-compile"]),
        ("data=videos:a,videos:b c", ["--data videos:a", "--data 'videos:b c'"]),
    ],
)
def test_a_flag_makes_a_study(text, flags):
    _, study = study_of_flag(text)
    assert [variant.model for variant in study.variants] == flags


@pytest.mark.parametrize("flag", ["--num-slots", "--patch-size=9", "--last_frame-clips"])
def test_a_flag_that_differs_between_variants_is_refused(flag):
    with pytest.raises(UserError, match=f"^{flag}: the study objects sets this"):
        check_flags("objects", STUDIES["objects"], ("--weight-decay", "1", flag))


@pytest.mark.parametrize("name", STUDIES)
def test_every_quick_run_parses_and_has_videos_for_a_batch(name):
    study = STUDIES[name].quick()
    assert len({variant_folder(v) for v in study.variants}) == len(study.variants)
    for job in chain(*plan_jobs(study, Path("x"), 1, study.flags(("--quick",)))):
        config = parse(job.arguments)
        videos = round(config.stages.label_fraction * config.data.train_videos)
        assert videos >= config.optim.batch_size, job.folder
