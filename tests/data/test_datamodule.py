"""From a data source to its batches: every data set, from a store and streamed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data import datamodule
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import DataModule, open_data, open_dataset
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.store.build import build_store, find_store
from ivcl_fast.data.store.table import INDEX
from ivcl_fast.data.synthetic.view import project
from ivcl_fast.errors import UserError
from tests.support.painted import numbers_of_rows, picture, write_images, write_painted, write_video

SOURCES = {
    "synthetic": ("localize", 36, ("train", "val", "val")),
    "synthetic:acre-comp": ("acre", 3, ("train", "val", "test")),
    "synthetic:something-else": ("compositional", None, ("train", "validation", "validation")),
}
"""Task, classes, and the splits for training, curves and results."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


def config(name: str, folder: Path, **changes) -> DataConfig:
    made = DataConfig(
        name, data_dir=folder, train_videos=20, val_videos=5, workers=1, decoder="pyav"
    )
    return replace(made, **changes)


def opened(config: DataConfig, read_only: bool = False) -> DataModule:
    frames = 7 if "acre" in config.source else 5
    model = IVCLConfig(image_size=32, patch_size=8, num_frames=frames, num_query_frames=2)
    return open_data(config, model, read_only=read_only)


def loader(data: DataModule, split: str, training: bool = False):
    frames = 7 if data.dataset.task == "acre" else 5
    return data.loader(split, batch_size=4, num_frames=frames, seed=3, training=training)


@pytest.mark.parametrize("name", SOURCES)
def test_every_data_set_from_a_store_and_streamed(name, folder):
    task, classes, splits = SOURCES[name]
    stored = opened(config(name, folder, keep_videos=True))
    streamed = opened(config(name, folder, loader="stream"))
    assert stored.dataset.task == task
    assert (stored.train_split, stored.curve_split, stored.eval_split) == splits
    assert classes is None or stored.num_classes == classes
    assert not stored.bad_files and not streamed.bad_files
    for split in splits:
        pairs = list(
            zip(loader(stored, split).epoch(0), loader(streamed, split).epoch(0), strict=True)
        )
        assert pairs
        for from_store, decoded in pairs:
            assert len(from_store.tensors) == (4 if "acre" in name else 3)  # frames are shared
            for mine, other in zip(from_store.tensors, decoded.tensors, strict=True):
                assert torch.equal(mine, other)
    clips = stored.usable_clips(splits[2])[:3]
    rows = stored.rows(clips, 7 if "acre" in name else 5)
    assert torch.equal(rows, streamed.rows(clips, rows.shape[1]))
    assert stored.dataset.describe(clips[0].label)  # type: ignore[arg-type]


def test_a_share_consists_of_complete_problems_whatever_the_seed(folder):
    data = opened(config("synthetic:acre-comp", folder))
    options = dict(batch_size=4, num_frames=7, seed=3, training=True)
    found: list[set[str]] = []
    for share in (0.25, 0.5, 1.0):
        loader = data.loader("train", share=share, **options)
        names = [loader.clips[i].name for batch in loader.epoch(0) for i in batch.clip_ids.tolist()]
        assert len(names) == 80 * share and len({name[:-3] for name in names}) == 20 * share
        assert loader.frames_per_clip == 10 / 4
        assert data.loader("train", share=share, **options | {"seed": 4}).clips == loader.clips
        found.append(set(names))
    assert found[0] < found[1] < found[2]
    masked = data.loader("train", **options, share_frames=False)
    assert masked.frames_per_clip == 7
    assert next(iter(masked.epoch(0))).frame_index is None


def test_a_finished_store_of_pyav_is_not_decoded_again(tmp_path, monkeypatch):
    """On a GPU, ``auto`` is DALI, unless only PyAV has a store."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    one = Media("a", (write_painted(tmp_path / "a.avi", 1, 3),))
    pyav, dali = (tmp_path / f"store-32-p8-{name}" for name in ("pyav", "dali"))
    found = partial(find_store, tmp_path, (32, 8))
    assert found("auto") == (dali, "auto")
    build_store([one], pyav, 32, 8, "pyav", 1)
    assert found("auto") == (pyav, "pyav") and found("dali") == (dali, "dali")
    dali.mkdir()
    (dali / INDEX).touch()
    assert found("auto") == (dali, "auto")


@pytest.fixture
def cater(folder, tmp_path) -> Path:
    """CATER of four videos to measure on, to be damaged."""
    made = open_dataset(config("synthetic", folder, train_videos=6, val_videos=4, keep_videos=True))
    return shutil.copytree(made.root, tmp_path / "cater")


def test_evaluation_splits_are_checked_before_any_work(cater, tmp_path):
    settings = config(f"cater:{cater}", tmp_path)
    val = cater / "lists" / "localize" / "val.txt"
    listed = val.read_text()
    val.write_text("")
    with pytest.raises(UserError, match=r"localize/val\.txt: "):
        opened(settings)
    val.unlink()
    with pytest.raises(UserError, match=r"localize/val\.txt: .*lists/<task>"):
        opened(settings)
    assert not list(cater.glob("store-*"))
    assert opened(settings, read_only=True).usable_clips("train"), "need not be measured on"
    val.write_text(listed.replace("CATER_new_", "CATER_old_"))
    for loader in ("store", "stream"):
        shutil.rmtree(cater / "store-32-p8-pyav", ignore_errors=True)
        with pytest.raises(UserError, match="split val"):
            opened(replace(settings, loader=loader))


def test_missing_scenes_are_logged_once(cater, tmp_path, caplog):
    caplog.set_level("WARNING", "ivcl_fast")  # whatever ran before in this process
    whole = opened(config(f"cater:{cater}", tmp_path))
    names = [clip.name for clip in whole.usable_clips("val")]
    assert whole.has_scenes(names) and not caplog.messages
    for name in names[1:3]:
        (cater / "scenes" / f"{name}.json").unlink()
    data = opened(config(f"cater:{cater}", tmp_path))
    (message,) = caplog.messages
    assert message.startswith(f"{cater}/scenes: 2 of 4 clips") and names[1] in message
    assert not data.has_scenes(names) and data.has_scenes(names[:1])
    opened(config(f"cater:{cater}", tmp_path, task="actions_present"))  # needs no scenes
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"decoder": "dali"}, r"decoder: .*ivcl_fast\[dali\].* got dali"),
    ],
)
def test_settings_for_another_machine_are_refused_before_any_work(
    changes, what, tmp_path, monkeypatch
):
    monkeypatch.setattr(decode, "_dali_installed", lambda: False)
    with pytest.raises(UserError, match=what):
        opened(config("synthetic", tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_settings_can_be_chosen_without_the_split_of_the_results(folder, monkeypatch):
    chosen = config("synthetic", folder, train_split="train_subsetT", curve_split="train_subsetV")
    data = opened(chosen)
    splits = data.train_split, data.curve_split, data.eval_split
    assert splits == ("train_subsetT", "train_subsetV", "val")
    names = [{clip.name for clip in data.dataset.clips(split)} for split in splits]
    assert [len(n) for n in names] == [16, 4, 5]
    assert not names[0] & names[1] and not (names[0] | names[1]) & names[2]
    monkeypatch.setattr(datamodule, "CURVE_CLIPS", 3)
    assert data.curve_share == 3 / 4 and data.measured_in_training == "a part of train_subsetV"
    again = opened(chosen, read_only=True)
    assert (again.train_split, again.curve_split) == splits[:2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(train_split="trian"),
            "^--train-split: expected one of auto, train, val, .*, got 'trian'",
        ),
        (dict(curve_split="train_subsetV"), "^--curve-split: .* got train, which shares 4 with "),
        (dict(train_split="val"), "^--train-split: .* shares 5 with val"),
    ],
)
def test_splits_that_do_not_exist_or_overlap_are_refused(changes, said, folder):
    with pytest.raises(UserError, match=said):
        opened(config("synthetic", folder, **changes))


@pytest.mark.parametrize("how", ["store", "stream"])
def test_clips_of_seconds_at_different_frame_rates(tmp_path, how):
    for number, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        rate = 10 if name[-1] == "a" else 20
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pictures = [picture(number, frame) for frame in range(3 * rate)]
        write_video(tmp_path / f"{name}.mp4", pictures, "libx264", rate=rate)
    wanted = DataConfig(f"videos:{tmp_path}", workers=1, loader=how, clip_seconds=2.5)
    (batch,) = loader(opened(wanted), "val").epoch(0)  # five frames, half a second apart
    slow, fast = map(numbers_of_rows, batch.rows)
    assert slow == [(2, i) for i in (4, 9, 14, 19, 24)]
    assert fast == [(3, i) for i in (9, 19, 29, 39, 49)]


def test_clips_of_seconds_need_a_frame_rate(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        write_images(tmp_path / "all" / name, "", 1, 4)
    wanted = DataConfig(f"videos:{tmp_path}", workers=1, clip_seconds=2.5)
    with pytest.raises(UserError, match=r"^--clip-seconds: .* frame rate, got none for all/a$"):
        opened(wanted)
    assert opened(replace(wanted, clip_seconds=0.0)).num_frames("all/a") == 4


def test_mirroring_moves_the_cell_with_its_place_in_the_picture(folder):
    """A camera on the plane x = -y, near the mean of CATER's."""
    mirror = loader(opened(config("synthetic", folder, mirror=True)), "train", training=True).mirror
    cells = np.stack([np.arange(36) % 6 - 2.5, np.arange(36) // 6 - 2.5, np.zeros(36)], -1)
    camera = np.array([[7.0, -7.0, 5.3]])
    seen = project(cells[None], camera, (0.0, 0.0, 0.0), 320, 240)[0]
    moved = seen[[mirror(cell) for cell in range(36)]]
    assert np.allclose(moved[:, 0], 320 - seen[:, 0]) and np.allclose(moved[:, 1:], seen[:, 1:])
