"""Probes find what was planted and nothing else; targets of frames agree with what was drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ivcl_fast import probes, reference
from ivcl_fast.analysis import linear_probes
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.synthetic.cater.scene_file import scene_dict
from ivcl_fast.data.synthetic.cater.video import draw_video
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.evaluation.baselines import CONE
from ivcl_fast.train import main as train_main
from ivcl_fast.training.run_folder import opened_folder
from ivcl_fast.training.settings import TrainConfig
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS, config, random_video

FRAMES = 8
"""Of a made-up clip."""


# --- What is true of a frame ---------------------------------------------------------------------


@pytest.mark.parametrize("index", range(2))
def test_inside_cones_is_what_is_covered(index: int) -> None:
    video = draw_video(3, index)
    scene = scene_dict(video, np.arange(301), index, (320, 240))
    covered = video.motion.covered
    names = np.array([o["instance"] for o in scene["objects"]])
    assert covered.any()
    for frame in range(301):
        inside = cater_frames.contained(scene, frame)
        assert inside == set(names[covered[frame]]), frame
        assert cater_frames.snitch_hidden(scene, frame) == covered[frame, 0]
        cones = [
            thing.shape == "cone" and not hidden
            for thing, hidden in zip(video.things, covered[frame], strict=True)
        ]
        assert len(cater_frames.visible_cones(scene, frame)) == sum(cones)


def thing(name: str, color: str, *places: tuple[float, float]) -> dict[str, Any]:
    """An object of a scene, standing at these places in frames 0, 1, ..."""
    shape = name.partition("_")[0]
    where = {str(i): [x, y, 0.5] for i, (x, y) in enumerate(places)}
    return {"shape": shape, "instance": name, "color": color, "locations": where}


def scene_of_three_frames() -> dict[str, Any]:
    """A red cone covers the snitch in frame 1 and carries it a cell further in frame 2.

    A blue sphere stands still, a green cone at the snitch's last cell too, at another of it.
    """
    return {
        "objects": [
            thing("spl_0", "gold", (-2.5, -2.5), (-2.5, -2.5), (-1.5, -2.5)),
            thing("cone_1", "red", (0.5, 0.5), (-2.5, -2.5), (-1.5, -2.5)),
            thing("sphere_2", "blue", *[(2.5, 2.5)] * 3),
            thing("cone_3", "green", *[(-1.1, -2.1)] * 3),
        ],
        "movements": {
            "spl_0": [], "sphere_2": [], "cone_3": [],
            "cone_1": [["_contain", "spl_0", 0, 1], ["_slide", None, 1, 2]],
        },
    }  # fmt: skip


def test_truth_of_a_small_scene() -> None:
    frames = linear_probes.frames_of([scene_of_three_frames()], [[0, 1, 2]])
    assert frames.clips.tolist() == [0, 0, 0]
    assert frames.cells.tolist() == [0, 0, 1]
    assert {name: of.tolist() for name, of in frames.groups.items()} == {
        "visible": [True, False, False],
        "hidden": [False, True, True],
        "hidden at the end": [False, False, True],
    }
    assert frames.guess.tolist() == [0, 0.5, 1]
    slid = [cater_frames.carried(scene_of_three_frames(), frame) for frame in range(3)]
    assert slid == [set(), set(), {"spl_0"}]


# --- Planted signals -----------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(clips: int, seed: int) -> tuple[Tensor, linear_probes.Frames]:
    """Features that hold a frame's cell in a linear way, and the frames."""
    said = normal(seed, clips * FRAMES, 12)
    turn, _ = torch.linalg.qr(normal(99, 12, 12))
    every = torch.ones(len(said), dtype=torch.bool)
    groups = {"all": every, "half": torch.arange(len(said)) % 2 == 0, "none": ~every}
    clip = torch.arange(clips).repeat_interleave(FRAMES)
    guess = torch.zeros(len(said), dtype=torch.float64)
    return said @ turn + 0.5, linear_probes.Frames(clip, said[:, :5].argmax(1), groups, guess)


def test_what_is_planted_is_found_and_noise_is_at_chance(monkeypatch: Any) -> None:
    monkeypatch.setattr(linear_probes, "CELLS", 5)
    (x, train), (x_test, test) = planted(60, seed=0), planted(40, seed=1)
    noise = normal(2, len(x), 12), normal(3, len(x_test), 12)
    features = {"planted": (x, x_test), "noise": noise}
    scores = linear_probes.run_probes(train, test, features)[linear_probes.CELL]
    assert scores.keys() == {"all", "half"}
    for of_group in scores.values():
        good, bad = of_group["planted"], of_group["noise"]
        assert good.value > 0.93 and good.low > bad.high
        assert bad.low < bad.chance == good.chance == 0.2 < bad.high
        assert of_group[CONE].value == 0


# --- Slots ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_slots_are_the_models_own() -> None:
    rows = reference.patchify(random_video(clips=2), 4)
    for objective in ("ivcl", "mae", "joint"):
        model = reference.IVCL(config(objective=objective))
        found = probes.slots_of(model, rows)
        kinds = {"ivcl": {"frame alone", "all frames"}, "mae": {"frame alone"}}
        assert found.keys() == kinds.get(objective, {"all frames"})
        encoded = found.get("all frames", found.get("frame alone"))
        torch.testing.assert_close(encoded, model.encode(rows))
    for readout in ("last", "mean", "cls"):
        classifier = reference.IVCLClassifier(config(readout=readout))
        found = probes.slots_of(classifier, rows)
        other = rows.clone()
        other[:, 0] = 0  # another first frame: later ones know of it only through the others
        changed = probes.slots_of(classifier, other)
        assert torch.equal(found["frame alone"][:, 1:], changed["frame alone"][:, 1:])
        assert not torch.allclose(found["all frames"][:, 1:], changed["all frames"][:, 1:])
        if readout == "last":
            torch.testing.assert_close(
                found["all frames"][:, -1].mean(1), classifier.features(rows)
            )


# --- The command ---------------------------------------------------------------------------------

TINY = (*RUN_FLAGS, "--no-compare-memoryless", "--no-pictures")


def test_from_run_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> None:
    data = write_dataset(tmp_path / "cater", SyntheticCater(train=20, val=10), 1)
    where = ["--data", f"cater:{data}", "--out", tmp_path, "--name", "run"]
    assert command(train_main, *where, *TINY, *FRAME_FLAGS)[0] == 0
    run = tmp_path / "run"
    monkeypatch.setattr(linear_probes, "STEPS", 3)  # quick
    status, out, _ = command(probes.main, run, "--train-clips", 15)
    assert status == 0
    assert "on 10 clips, 95 % intervals" in out and "probes.md" in out
    kept = json.loads((run / "probes" / "probes.json").read_text())
    assert (kept["train_clips"], kept["eval_clips"]) == (15, 10)
    assert kept["scores"].keys() == {linear_probes.CELL}
    cell = kept["scores"]["snitch's cell"]["visible"]
    models = ("untrained", "pretrained", "finetuned")
    kinds = [f"{model}, {frames}" for model in models for frames in ("frame alone", "all frames")]
    assert list(cell) == ["time alone", *kinds, CONE]
    for score in cell.values():
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    page = (run / "probes" / "probes.md").read_text()
    assert max(map(len, out.splitlines())) <= 100
    _, *tables = page.split("\n## ")
    scores = kept["scores"]
    for table, (name, groups) in zip(tables[: len(scores)], scores.items(), strict=True):
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        features = {key for of_group in groups.values() for key in of_group}
        assert table.startswith(name) and len(rows) == 1 + len(features) + 1  # and chance
        assert {line.count("|") for line in rows} == {2 + len(groups)}

    status, _, error = command(probes.main, run, "--eval-clips", 3)
    assert status == 2 and "--eval-clips: expected at least 10, got 3" in error


def test_other_data_is_refused_in_one_line(tmp_path: Path, command: Any) -> None:
    settings = TrainConfig().replace(source="acre:x", out=tmp_path, name="run")
    with opened_folder(settings):
        pass
    status, _, error = command(probes.main, settings.folder)
    assert status == 2 and error.count("\n") == 1 and "expected a run of CATER" in error
