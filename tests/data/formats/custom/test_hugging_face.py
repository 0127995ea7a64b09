"""``hf:NAME_OR_DIR``: data sets of the Hugging Face package, without network."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.formats.custom.hugging_face import HuggingFaceVideos
from ivcl_fast.errors import UserError

NAMES = ["cat", "dog"]


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "home"))
    found = pytest.importorskip("datasets", reason="needs ivcl_fast[hf]")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "home")
    found.disable_progress_bars()
    return found


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def labels(dataset: HuggingFaceVideos, split: str) -> dict[str, str]:
    return {c.name: dataset.describe(c.label) for c in dataset.clips(split)}  # type: ignore[arg-type]


def save(datasets, folder: Path, text: str, **labels: list[int]) -> Path:
    """Save splits of videos inside the files; their content has this text in it."""
    columns = {"label": datasets.ClassLabel(names=NAMES), "clip": datasets.Video()}
    for split, of_split in labels.items():
        clips = [
            {"path": f"../{split}/{n % 2}.webm", "bytes": f"{text} {n}".encode()}
            for n in range(len(of_split))
        ]
        rows = {"label": of_split, "clip": clips}
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
        made.save_to_disk(folder / split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*labels]}))
    return folder


def test_a_column_of_videos_inside_the_files(datasets, tmp_path):
    save(datasets, tmp_path / "saved", "video", train=[0, 1, 0, 1], validation=[0, 1])
    dataset = HuggingFaceVideos(tmp_path / "saved")
    assert dataset.root == tmp_path / "saved-data" and dataset.splits == ("train", "val")
    assert labels(dataset, "val") == {"validation/000000": "cat", "validation/000001": "dog"}
    contents = {one.name: one.files[0].read_bytes() for one in dataset.media()}
    assert contents["train/000003"] == b"video 3" and len(contents) == 6
    before = {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*.webm")}
    again = HuggingFaceVideos(tmp_path / "saved")
    assert {p: p.stat().st_mtime_ns for p in again.root.rglob("*.webm")} == before
    assert labels(again, "train") == labels(dataset, "train")


def test_videos_that_changed_are_unpacked_again(datasets, tmp_path):
    """Though their number and labels are the same."""
    for text in ("old", "new"):
        saved = save(datasets, tmp_path / "saved", text, train=[0, 1, 0, 1])
        contents = {one.files[0].read_bytes() for one in HuggingFaceVideos(saved).media()}
        assert contents == {f"{text} {n}".encode() for n in range(4)}


def test_a_split_whose_labels_are_kept_secret_has_none(datasets, tmp_path, caplog):
    """Such labels are -1."""
    saved = save(datasets, tmp_path / "saved", "video", train=[0, 1, 0, 1], test=[-1, -1])
    assert HuggingFaceVideos(saved).splits == ("train", "val")
    assert "skipped the split test, because only train has labels" in caplog.text


def test_a_column_of_lists_of_images(datasets, tmp_path):
    frames = [[{"path": None, "bytes": png(10 * v + f)} for f in range(2 + v)] for v in range(4)]
    columns = {
        "frames": datasets.List(datasets.Image()),
        "classes": datasets.List(datasets.ClassLabel(names=NAMES)),
    }
    made = datasets.Dataset.from_dict(
        {"frames": frames, "classes": [[0], [1, 0], [1], [0, 1]]},
        features=datasets.Features(columns),
    )
    made.save_to_disk(tmp_path / "saved")
    dataset = HuggingFaceVideos(tmp_path / "saved", val_fraction=0.5)
    assert dataset.multi_label and dataset.num_classes == 2
    media = {one.name: one for one in dataset.media()}
    assert [len(one.files) for one in media.values()] == [2, 3, 4, 5]
    assert media["train/000003"].files[4].read_bytes() == png(34)


def test_a_folder_of_videos(datasets, tmp_path):
    """As ``load_dataset`` finds it."""
    for name in ("train/cat/1.mp4", "train/dog/2.mp4", "test/cat/3.mp4", "test/dog/4.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_text(name)
    dataset = HuggingFaceVideos(tmp_path / "clips")
    assert labels(dataset, "test") == {"test/000000": "cat", "test/000001": "dog"}
    assert dataset.media()[0].files[0].read_text() == "test/cat/3.mp4"


def test_data_without_videos(datasets, tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"hf: expected a column of type Video .* got text"):
        HuggingFaceVideos(tmp_path / "saved")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^hf:.*/file: expected a name or a folder, got a file"):
        HuggingFaceVideos(tmp_path / "file")
    with pytest.raises(UserError, match=r"^hf:.*/none: cannot be loaded: ") as error:
        HuggingFaceVideos(tmp_path / "none")
    assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf: expected pip install .ivcl_fast\[hf\]"):
        HuggingFaceVideos(Path("any"))
