"""The same videos through every format of one's own give the same batches, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import open_data
from ivcl_fast.data.loader import Batch
from tests.support.own_videos import KINDS, write_one

CLASSES = ("left", "right")
VIDEOS = [n for n in range(18) if KINDS[n % len(KINDS)][1] != "frames"][:14]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """14 videos of six kinds: four of each class to train, three of each to validate."""
    root = tmp_path_factory.mktemp("equal") / "clips"
    for at, number in enumerate(VIDEOS):
        write_one(root / ("train" if at < 8 else "val") / CLASSES[at % 2], number)
    return root


def files(folder: Path, split: str) -> list[tuple[str, Path, int]]:
    """Name, path and label of the videos of a split, in the order of their names."""
    found = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.*"))
    return [
        (name, path, CLASSES.index(path.parent.name))
        for name, path in found
        if name.startswith(split) and "-data" not in name
    ]


def as_folder(folder: Path, place: Path) -> str:
    return f"videos:{folder}"


def as_list(folder: Path, place: Path) -> str:
    for split in ("train", "val"):
        lines = [
            f"{os.path.relpath(path, place)} {label}" for _, path, label in files(folder, split)
        ]
        (place / f"{split}.csv").write_text("\n".join(lines))
    return f"csv:{place / 'train.csv'}"


def as_hugging_face(folder: Path, place: Path) -> str:
    datasets = pytest.importorskip("datasets", reason="needs ivcl_fast[hf]")
    columns = {"video": datasets.Video(), "label": datasets.ClassLabel(names=list(CLASSES))}
    found = {}
    for split in ("train", "val"):
        rows = {
            "video": [
                {"path": name, "bytes": path.read_bytes()} for name, path, _ in files(folder, split)
            ],
            "label": [label for _, _, label in files(folder, split)],
        }
        features = datasets.Features(columns)
        found[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(found).save_to_disk(place / "saved")
    return f"hf:{place / 'saved'}"


def batches(source: str, loader: str) -> list[Batch]:
    """Two epochs of training and the validation."""
    cfg = IVCLConfig(image_size=32, patch_size=8, num_frames=4, num_query_frames=2)
    config = DataConfig(source, workers=1, decoder="pyav", loader=loader)  # type: ignore[arg-type]
    data = open_data(config, cfg)
    assert data.num_classes == 2 and not data.bad_files
    found = []
    for split, training in (("train", True), ("val", False)):
        options = dict(batch_size=4, num_frames=4, seed=5, training=training)
        made = data.loader(split, **options)  # type: ignore[arg-type]
        found += [batch for epoch in range(1 + training) for batch in made.epoch(epoch)]
    return found


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, list[Batch]]:
    return {loader: batches(as_folder(folder, folder), loader) for loader in ("store", "stream")}


@pytest.mark.parametrize("loader", ["store", "stream"])
@pytest.mark.parametrize("form", [as_list, as_hugging_face])
def test_formats_agree(form: Callable[[Path, Path], str], loader, folder, expected, tmp_path):
    source = form(folder, tmp_path)
    for _ in range(2):  # the second time from what has been unpacked
        found = batches(source, loader)
        assert len(found) == len(expected[loader]) == 2 * 2 + 2
        for mine, other in zip(found, expected[loader], strict=True):
            assert len(mine.tensors) == 3
            for x, y in zip(mine.tensors, other.tensors, strict=True):
                assert torch.equal(x, y)
    assert len({bytes(one.rows[0].numpy().tobytes()) for one in found}) == len(found)
