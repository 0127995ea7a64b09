"""From a data set's name to its batches: every kind, from a store and streamed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data import registry as catalog
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import Data, StoredData, StreamedData, open_data, open_dataset
from ivcl_fast.errors import UserError

KINDS = {
    "synthetic": ("localize", 36, ("train", "val", "val")),
    "synthetic:moving": ("localize", 36, ("train", "val", "val")),
    "synthetic:acre-comp": ("acre", 3, ("train", "val", "test")),
    "synthetic:something-else": ("compositional", None, ("train", "validation", "validation")),
}
"""Task, classes, and the splits to train on, to draw curves of and to report."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


def config(name: str, folder: Path, **changes) -> DataConfig:
    made = DataConfig(
        name, data_dir=folder, train_videos=40, val_videos=5, workers=1, decoder="pyav"
    )
    return replace(made, **changes)


def opened(config: DataConfig, read_only: bool = False) -> Data:
    frames = 7 if "acre" in config.source else 5
    model = IVCLConfig(image_size=32, patch_size=8, num_frames=frames, num_query_frames=2)
    return open_data(config, model, read_only=read_only)


def loader(data: Data, split: str, training: bool = False):
    frames = 7 if data.dataset.task == "acre" else 5
    return data.loader(split, batch_size=4, num_frames=frames, seed=3, training=training)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_from_a_store_and_streamed(name, folder):
    task, classes, splits = KINDS[name]
    stored = opened(config(name, folder))
    streamed = opened(config(name, folder, loader="stream"))
    assert isinstance(stored, StoredData) and isinstance(streamed, StreamedData)
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


def test_a_labelled_share_is_of_whole_problems(folder):
    data = opened(config("synthetic:acre-comp", folder))
    options = dict(batch_size=4, num_frames=7, seed=3, training=True)
    found: list[set[str]] = []
    for share in (0.25, 0.5, 1.0):
        loader = data.loader("train", share=share, **options)
        names = [loader.clips[i].name for batch in loader.epoch(0) for i in batch.clip_ids.tolist()]
        assert len(names) == 160 * share and len({name[:-3] for name in names}) == 40 * share
        assert loader.frames_per_clip == 10 / 4
        found.append(set(names))
    assert found[0] < found[1] < found[2]
    masked = data.loader("train", **options, pretraining=True)
    assert masked.frames_per_clip == 7
    assert next(iter(masked.epoch(0))).frame_index is None


@pytest.mark.parametrize(("name", "crops"), [("synthetic", 0), ("synthetic:something-else", 1)])
def test_only_where_a_place_is_no_answer_frames_are_cropped(name, crops, folder):
    """And only in training."""
    streamed = opened(config(name, folder, loader="stream"))
    assert [loader(streamed, streamed.train_split, t).random_crop for t in (True, False)] == [
        bool(crops),
        False,
    ]


def test_what_one_feed_drops_is_told_and_dropped_by_all(folder, tmp_path):
    data = opened(config("synthetic", tmp_path, loader="stream", train_videos=6, val_videos=2))
    clip = data.usable_clips("val")[0]
    (data.dataset.root / "videos" / f"{clip.media}.avi").write_bytes(b"RIFF")
    (batch,) = loader(data, "val").epoch(0)
    assert batch.clip_ids.tolist() == [1]
    assert list(data.bad_files) == [clip.media]
    assert clip not in data.usable_clips("val")


@pytest.mark.parametrize("name", KINDS)
def test_reading_alone_generates_no_data(name, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/synthetic-.*: no such .* --data-dir with"):
        opened(config(name, tmp_path), read_only=True)
    with pytest.raises(UserError, match=r"/nowhere: no such folder; .* --data with its"):
        open_dataset(config("cater:nowhere", tmp_path), read_only=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cater(folder, tmp_path) -> Path:
    """CATER of four videos to measure on, to be damaged."""
    made = open_dataset(config("synthetic", folder, train_videos=6, val_videos=4))
    return shutil.copytree(made.root, tmp_path / "cater")


def test_what_is_measured_on_is_looked_for_before_any_work(cater, tmp_path):
    settings = config(f"cater:{cater}", tmp_path)
    val = cater / "lists" / "localize" / "val.txt"
    listed = val.read_text()
    val.write_text("")
    with pytest.raises(UserError, match=r"localize/val\.txt: lists no video"):
        opened(settings)
    val.unlink()
    with pytest.raises(UserError, match=r"localize/val\.txt: no such list"):
        opened(settings)
    assert not list(cater.glob("store-*"))
    assert opened(settings, read_only=True).usable_clips("train"), "need not be measured on"
    val.write_text(listed.replace("CATER_new_", "CATER_old_"))
    for loader in ("store", "stream"):
        shutil.rmtree(cater / "store-32-p8-pyav", ignore_errors=True)
        with pytest.raises(UserError, match="no clip of val can be used, to be measured on"):
            opened(replace(settings, loader=loader))


def test_acre_without_its_validation_split(folder, tmp_path):
    made = open_dataset(config("synthetic:acre-iid", folder, train_videos=2, val_videos=1))
    data = shutil.copytree(made.root, tmp_path / "acre")
    (data / "config" / "val.json").unlink()
    settings = config(f"acre:{data}", tmp_path)
    with pytest.raises(UserError, match=r"val\.json: no such file"):
        opened(settings)
    assert len(opened(settings, read_only=True).usable_clips("test")) == 4


def test_scenes_that_are_missing_are_told_of_once(cater, tmp_path, caplog):
    caplog.set_level("WARNING", "ivcl_fast")  # whatever ran before in this process
    whole = opened(config(f"cater:{cater}", tmp_path))
    names = [clip.name for clip in whole.usable_clips("val")]
    assert whole.has_scenes(names) and not caplog.messages
    for name in names[1:3]:
        (cater / "scenes" / f"{name}.json").unlink()
    data = opened(config(f"cater:{cater}", tmp_path))
    assert caplog.messages == [
        f"{cater}/scenes: no scene of 2 of 4 clips, such as {names[1]}, so hidden ends are not "
        "told apart"
    ]
    assert not data.has_scenes(names) and data.has_scenes(names[:1])
    opened(config(f"cater:{cater}", tmp_path, task="actions_present"))  # they tell nothing
    assert len(caplog.messages) == 1


def test_tasks_with_media_of_their_own_have_stores_of_their_own(folder):
    one, other = (
        opened(config("synthetic:something-else", folder, task=task))
        for task in ("compositional", "fewshot_base")
    )
    assert isinstance(one, StoredData) and isinstance(other, StoredData)
    assert one.store.path.name == "store-32-p8-pyav-compositional"
    assert other.store.path.name == "store-32-p8-pyav-fewshot_base"


@pytest.mark.parametrize(
    ("name", "task", "what"),
    [
        ("movies", "auto", "'movies' is not synthetic, "),
        ("acre:", "auto", "'acre:' is not synthetic, "),
        ("synthetic:acre", "auto", "'synthetic:acre' is not synthetic, "),
        ("synthetic", "acre", "'acre' is not one of localize, "),
        ("acre:DIR", "localize", "'localize' is not one of acre"),
    ],
)
def test_mistakes(name, task, what):
    with pytest.raises(UserError, match=what):
        catalog.find_task(name, task)


def test_the_usual_task():
    assert catalog.find_task("cater:x", "auto") == "localize"
    assert catalog.find_task("acre:x", "auto") == "acre"
    assert catalog.find_task("something-else:x", "auto") == "compositional"
    assert catalog.find_task("synthetic", "actions_present") == "actions_present"
