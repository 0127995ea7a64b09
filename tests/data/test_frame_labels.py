"""Labels of frames, compared with pictures and scenes, and pretraining with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ivcl_fast import IVCLClassifier, Supervised
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.command import run_command
from ivcl_fast.data.datamodule import open_data
from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.frame_labels import CLASSES, OBJECTS, SHAPES, make_frame_labels
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, spec_of
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.errors import UserError
from ivcl_fast.train import main
from ivcl_fast.training.arguments import parse
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

FRAMES = 38


@pytest.fixture(scope="module", params=["static", "moving"])
def cater(request, tmp_path_factory) -> Cater:
    folder = tmp_path_factory.mktemp("cater") / request.param
    return Cater(write_dataset(folder, SyntheticCater(train=8, val=4, camera=request.param), 1))


# --- Against pictures and the scenes' own numbers -------------------------------------------------


def test_the_snitch_is_drawn_at_its_label(cater):
    """Pictures ease and labels do not, so the snitch may be a few pixels away while it moves."""
    grid, frames, clips = 24, np.arange(0, FRAMES, 6), cater.clips("train")[:4]
    labels, spec = make_frame_labels(cater, "detection", grid), spec_of(cater.root)
    masks = [spec.object_masks(int(clip.name[-6:]), frames) == 0 for clip in clips]
    shares = []
    for other in (0, 1):
        near = []
        for number, clip in enumerate(clips):
            places = labels(clip, frames, FRAMES)[..., SHAPES.index("spl")]
            for time, cell in places.nonzero().tolist():
                y, x = masks[(number + other) % len(clips)][time].nonzero()
                if len(y) > 7:  # or it is behind something
                    center = np.array([cell // grid * 3 + 1.5, cell % grid * 4 + 2])
                    near.append(np.hypot(*(center - (y.mean(), x.mean()))) < 5)
        assert len(near) > 8
        shares.append(np.mean(near))
    assert shares[0] > 0.9 and shares[1] < 0.3, shares


# --- By hand --------------------------------------------------------------------------------------


def thing(shape: str, color: str, size: str, material: str, place: list[float]) -> dict:
    """An object that stands still for four frames."""
    return {
        "shape": shape, "color": color, "size": size, "material": material,
        "instance": f"{shape}_{color}", "locations": {str(i): place for i in range(4)},
    }  # fmt: skip


@pytest.fixture
def by_hand(tmp_path) -> Cater:
    """A cone covers the snitch in the two frames in the middle."""
    cube = thing("cube", "blue", "small", "rubber", [14.9479, -13.0178, 10.6863])
    cube["locations"]["3"] = [-6.0, -6.0, 0.0]
    scene = {
        "image_index": 0,
        "objects": [
            thing("spl", "gold", "small", "metal", [0.0, 0.0, 0.0]),
            thing("cone", "red", "large", "rubber", [0.0, 0.0, 0.0]),
            cube,
        ],
        "movements": {
            "cone_red": [["_contain", "spl_gold", 0, 1], ["_pick_place", None, 2, 3]],
            "spl_gold": [],
            "cube_blue": [],
        },
    }
    for folder in ("videos", "scenes", "lists"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scenes" / "clip.json").write_text(json.dumps(scene))
    return Cater(tmp_path)


def names(labels: Tensor, objective: str) -> list[set[str]]:
    """Classes of each frame."""
    of_frame = labels if objective == "classification" else labels.amax(dim=1)
    return [{CLASSES[objective][i] for i in row.nonzero()[:, 0]} for row in of_frame]


CLIP, ALL = Clip("clip", "clip", 0), np.arange(4)
THINGS = {"cone", "red", "large", "rubber", "cube", "blue", "small"}


def test_attributes_by_hand(by_hand):
    """The size and material of the snitch do not count, and inside a cone it is hidden."""
    labels = make_frame_labels(by_hand, "classification", 8)(CLIP, ALL, 4)
    assert labels.dtype == torch.float32 and labels.shape == (4, 18)
    seen = THINGS | {"spl"}
    assert names(labels, "classification") == [seen, THINGS, THINGS, seen]


def test_centres_by_hand(by_hand):
    """The camera looks at the middle of the floor.

    The cube is straight behind the camera, and as far away; in the last frame it is on the left of
    the picture.
    """
    labels = make_frame_labels(by_hand, "detection", 9)(CLIP, ALL, 4)
    assert labels.dtype == torch.float32 and labels.shape == (4, 81, 5)
    assert [len(found) for found in names(labels, "detection")] == [2, 1, 1, 2]
    assert labels[:, 4 * 9 + 4, SHAPES.index("cone")].tolist() == [1, 1, 1, 1]
    assert labels.sum() == 6


def test_objects_by_hand(by_hand):
    """Each slot has the place of its own object while that is in sight; the cube has no slot."""
    labels = make_frame_labels(by_hand, "objects", 8)(CLIP, ALL, 4)
    assert labels.dtype == torch.float32 and labels.shape == (4, 9, 24)
    columns, rows = labels.split(12, dim=2)
    for name, seen in (("spl", [1, 0, 0, 1]), ("red", [1, 1, 1, 1])):
        slot, middle = OBJECTS.index(name), 6  # of the floor
        assert columns[:, slot, middle].tolist() == rows[:, slot, middle].tolist() == seen
    assert labels.sum() == 12


# --- From data to a trained encoder ---------------------------------------------------------------


SLOTS = dict.fromkeys(CLASSES, ()) | {"objects": ("--num-slots", "9")}
"""Flags of the slots that an objective needs."""


@pytest.mark.parametrize("loader", ["store", "stream"])
@pytest.mark.parametrize("objective", CLASSES)
def test_batches_hold_the_labels_of_their_own_frames(cater, objective, loader):
    """Training jitters the frames; the labels are those of the jittered frames."""
    flags = ["--data", f"cater:{cater.root}", "--objective", objective, "--image-size", "32"]
    flags += ["--num-frames", "5", "--num-query-frames", "1", "--workers", "1", *SLOTS[objective]]
    config = parse([*flags, "--loader", loader, "--decoder", "pyav"])
    data = open_data(config.data, config.model, frame_labels=[objective])
    options = dict(batch_size=4, num_frames=5, seed=3, training=True)
    batches = data.loader("train", **options, frame_labels=objective)
    clips, expected = data.dataset.clips("train"), make_frame_labels(cater, objective, 4)
    taken = set()
    for batch in batches.epoch(1):
        for clip_id, labels in zip(batch.clip_ids.tolist(), batch.labels, strict=True):
            frames = batches._frame_ids(1, clip_id)
            assert torch.equal(labels, expected(clips[clip_id], frames, FRAMES))
            taken.add(tuple(frames))
    assert len(taken) > 1
    plain = next(iter(data.loader("train", **options).epoch(0)))
    assert plain.labels.dtype == torch.int64 and plain.labels.shape == (4,)


SMALL = [
    *RUN_FLAGS, *FRAME_FLAGS, "--image-size", "32", "--embed-dim", "32", "--depth", "2",
    "--pretrain-clips", "600",
]  # fmt: skip


@pytest.fixture(scope="module")
def learnable(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learnable")
    return write_dataset(folder / "cater", SyntheticCater(train=60, val=20), 1)


@pytest.mark.parametrize(
    ("objective", "margin", "left", "longer"),
    [
        ("detection", 0.2, 0.8, ()),
        # Who knows how often each label applies, and sees nothing, has 0.43 left of the loss.
        ("objects", 0.01, 0.3, ("--pretrain-clips", "2400", "--lr", "0.01")),
    ],
)
def test_pretraining_learns_and_finetuning_continues_from_it(
    objective, margin, left, longer, learnable, tmp_path, monkeypatch, capsys
):
    flags = ["--data", f"cater:{learnable}", "--objective", objective, *SMALL]
    flags += [*SLOTS[objective], *longer, "--no-compare-memoryless"]
    monkeypatch.setattr(sys, "argv", ["train", *flags, "--out", str(tmp_path), "--name", "run"])
    main()
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [r for r in records if "val_frame_map" in r]
    assert len(measured) >= 3 and {r["stage"] for r in measured} == {"pretrain"}
    assert measured[-1]["val_frame_map"] > measured[-1]["val_frame_map_chance"] + margin
    losses = [r["loss"] for r in records if r["stage"] == "pretrain" and "loss" in r]
    assert losses[-1] < left * losses[0]
    start, end = (load_file(run / s / "model.safetensors") for s in ("pretrain", "finetune"))
    moved = {
        key: (end[key] - value).abs().max() for key, value in start.items() if "encoder" in key
    }
    assert max(moved.values()) < 0.01, "one step of finetuning leaves the encoder nearly as it was"
    models = FinishedRun.open(run, "cpu").models()
    assert [type(model) for model in models.values()] == [Supervised, IVCLClassifier]
    shown = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
    slots = models["pretrained"].cfg.num_slots
    assert slot_attention(models["pretrained"], shown).shape == (1, 4, slots, 16)
    page = (run / "report.html").read_text()
    assert '"slot 1"' in page and '"reconstruction"' not in page


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["synthetic:acre-iid", "synthetic:something-else", "acre:nowhere"])
def test_data_sets_without_labels_are_refused_before_any_work(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--data", data, "--objective", "detection"])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "--objective detection: expected data with labels of single frames" in error
    assert error.endswith(f"got {data}\n") and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="--frame-labels: expected data with"):
        parse(["--data", data, "--frame-labels"])
    with pytest.raises(UserError, match=r"^--num-slots: expected 9 .* got 2"):
        parse(["--objective", "objects", "--num-slots", "2"])
    parse(["--data", data, "--objective", "detection", "--stage", "finetune"])  # needs none


def test_malformed_scenes_are_named(by_hand):
    labels = make_frame_labels(by_hand, "detection", 8)
    with pytest.raises(UserError, match=r"clip\.json: expected 3 frames, .* got 4"):
        labels(CLIP, np.array([0]), 3)
    file = by_hand.root / "scenes" / "clip.json"
    scene = json.loads(file.read_text())
    del scene["objects"][1]["shape"]
    file.write_text(json.dumps(scene))
    with pytest.raises(UserError, match=r"expected a CATER scene .*KeyError"):
        make_frame_labels(by_hand, "detection", 8)(CLIP, ALL, 4)


def test_folders_without_frame_labels_are_refused(tmp_path):
    moving = tmp_path / "max2action_cameramotion"
    for folder in ("videos", "lists", "scenes"):
        (moving / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(moving)
    for root in (moving, tmp_path / "link"):
        with pytest.raises(UserError, match="expected CATER with a static camera"):
            make_frame_labels(Cater(root), "detection", 8)
    make_frame_labels(Cater(moving), "classification", 8)
    with pytest.raises(UserError, match=r"^--frame-labels: expected --task localize, got"):
        make_frame_labels(Cater(moving, "actions_present"), "cells", 8)
    (moving / "scenes").rmdir()
    with pytest.raises(UserError, match="expected CATER with its folder scenes/"):
        make_frame_labels(Cater(moving), "classification", 8)


# --- The snitch's cell in every frame -------------------------------------------------------------


@pytest.mark.parametrize(("task", "cells"), [("localize", 6), ("localize_4x4", 4)])
def test_cells_are_those_of_each_frame(cater, task, cells):
    """Seen or hidden; that of the last frame is the label of the clip."""
    dataset = Cater(cater.root, task)
    labels, hidden = make_frame_labels(dataset, "cells", 8), 0
    for clip in dataset.clips("train"):
        scene = dataset.scene(clip.name)
        frames = np.arange(cater_frames.frame_count(scene))
        found = labels(clip, frames, len(frames))
        assert found.dtype == torch.int64 and found.shape == frames.shape
        assert found.tolist() == [cater_frames.snitch_cell(scene, i, cells) for i in frames]
        assert found[-1] == clip.label
        hidden += any(cater_frames.snitch_hidden(scene, i) for i in frames)
    assert hidden
