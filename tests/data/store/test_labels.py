"""A store with its labels stands alone: it is copied, and trained from without its videos."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import DataModule, open_data
from ivcl_fast.data.dataset import Clip, Media
from ivcl_fast.data.registry import find_task, parse_source
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.labels import StoredDataset, stored_tasks, write_labels
from ivcl_fast.errors import UserError
from tests.data.test_loader import same
from tests.support.painted import write_images, write_painted

CFG = IVCLConfig(image_size=32, patch_size=8, num_frames=4, num_query_frames=2)


@pytest.fixture
def moved(tmp_path) -> tuple[DataModule, Path]:
    """A data set of two classes, and a copy of its store, whose videos are gone."""
    for number in range(10):
        folder = tmp_path / "videos" / ("train", "val")[number // 6] / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_painted(folder / f"{number}.avi", number, 5 + number)
    (tmp_path / "videos" / "train" / "a" / "bad.avi").write_bytes(b"RIFF")
    data = open_data(DataConfig(f"videos:{tmp_path / 'videos'}", workers=1), CFG)
    copy = shutil.copytree(data.folder, tmp_path / "copy")
    shutil.move(tmp_path / "videos", tmp_path / "elsewhere")
    return data, copy


def test_the_same_batches_without_the_videos(moved):
    data, copy = moved
    alone = open_data(DataConfig(f"store:{copy}"), CFG)
    assert (alone.num_classes, alone.train_split, alone.curve_split) == (2, "train", "val")
    assert alone.dataset.describe(1) == "b" and list(alone.bad_files) == ["train/a/bad.avi"]
    for split, training in (("train", True), ("val", False)):
        assert [*alone.dataset.clips(split)] == [*data.dataset.clips(split)]
        options = dict(batch_size=2, num_frames=4, seed=1, training=training)
        found = alone.loader(split, **options)  # type: ignore[arg-type]
        expected = list(data.loader(split, **options).epoch(3))  # type: ignore[arg-type]
        assert same(list(found.epoch(3)), expected) and len(found) == len(expected) > 0


def test_what_does_not_fit_the_store_is_refused(moved, tmp_path):
    _, copy = moved
    config = DataConfig(f"store:{copy}")
    with pytest.raises(UserError, match="--data: expected a store with image_size 64, got 32"):
        open_data(config, replace(CFG, image_size=64))
    with pytest.raises(UserError, match="--data: expected a store with crop center, got none"):
        open_data(replace(config, crop="center"), CFG)
    with pytest.raises(UserError, match="--loader: expected store"):
        open_data(replace(config, loader="stream"), CFG)
    with pytest.raises(UserError, match=rf"--data: expected a frame store .*, got {tmp_path}"):
        open_data(DataConfig(f"store:{tmp_path}"), CFG)
    labels = copy / "labels-classify.safetensors"
    labels.write_bytes(labels.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"labels-classify\.safetensors: .*prepare the store again"):
        open_data(config, CFG)


class Asked:
    """Clips with given frames and several labels, in two tasks."""

    splits, curve_split, num_classes, multi_label = ("train", "val"), "val", 14, True

    def __init__(self, root: Path, task: str) -> None:
        self.root, self.task = root, task

    def clips(self, split: str) -> list[Clip]:
        return [Clip(f"{split}{i}", "p", (i, 13), (0, 2, 1)) for i in range(3)]

    def media(self) -> list[Media]:
        return [write_images(self.root, "p", 1, 3)]

    def describe(self, label: int) -> str:
        return f"class {label}"


def test_every_kind_of_clip(tmp_path):
    traits = dict(tasks=("z", "a"), frames=3, parts=True, mirror=False)
    data = [Asked(tmp_path, task) for task in ("a", "z")]
    store = build_store(data[0].media(), tmp_path / "store", 32, 8, workers=1).path
    for one in data:
        write_labels(store, one, traits, has_grid=True)
    assert stored_tasks(store) == ("a", "z") and find_task(f"store:{store}", "auto") == "z"
    dataset_format, place = parse_source(f"store:{store}")
    assert (dataset_format.frames, dataset_format.parts, place) == (3, True, store)
    found = StoredDataset(store, "a")
    assert list(found.clips("val")) == data[0].clips("val") == found.clips("val")[:]
    assert found.has_grid and found.clips("val")[-1].label == (2, 13)
