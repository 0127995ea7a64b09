"""Synthetic CATER and ACRE are drawn straight into the frame store, without media files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import DataModule, open_data
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.drawn import drawn_media
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import patchify
from tests.data.synthetic.test_writer import contents

CONFIG = DataConfig(train_videos=3, val_videos=2, workers=1)


def opened(config: DataConfig, size: int = 32) -> DataModule:
    sizes = dict(image_size=size, patch_size=8, num_frames=7, num_query_frames=2)
    return open_data(config, IVCLConfig(**sizes))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DataModule:
    return opened(replace(CONFIG, data_dir=tmp_path_factory.mktemp("drawn")))


def test_the_data_set_is_complete_but_for_its_videos(drawn: DataModule, tmp_path: Path) -> None:
    found = contents(drawn.dataset.root)
    made = contents(write_dataset(tmp_path / "made", SyntheticCater(train=3, val=2), 1))
    videos = {name for name in made if name.startswith("videos/")}
    assert {name: content for name, content in made.items() if name not in videos} == {
        name: content for name, content in found.items() if not name.startswith("store-")
    }


def test_frames_are_like_the_videos(drawn: DataModule, tmp_path: Path) -> None:
    decoded = opened(replace(CONFIG, data_dir=tmp_path, keep_videos=True))
    assert len(list(decoded.dataset.root.glob("videos/*.avi"))) == 5
    clips = drawn.usable_clips("train")
    rows, others = (data.rows(clips, 38).float() for data in (drawn, decoded))
    assert rows.shape == others.shape
    assert (rows - others).abs().mean() < 2.5


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_draw_the_same_bytes(drawn: DataModule, tmp_path: Path) -> None:
    two = opened(replace(CONFIG, data_dir=tmp_path, workers=2))
    assert contents(two.dataset.root) == contents(drawn.dataset.root)


def test_videos_can_be_written_later(drawn: DataModule, tmp_path: Path) -> None:
    config = replace(CONFIG, data_dir=tmp_path)
    root = opened(config).dataset.root
    with pytest.raises(UserError, match=r"--loader: .*--keep-videos"):
        opened(replace(config, source=f"cater:{root}", loader="stream"))
    kept = opened(replace(config, keep_videos=True))
    assert kept.dataset.root == root and len(list(root.glob("videos/*.avi"))) == 5
    assert drawn_media(kept.dataset) is None
    streamed = opened(replace(config, source=f"cater:{root}", loader="stream"))
    clips = kept.usable_clips("val")
    assert torch.equal(kept.rows(clips, 7), streamed.rows(clips, 7))


def test_a_folder_without_videos_has_frames_of_any_size(drawn: DataModule) -> None:
    data = opened(replace(CONFIG, source=f"cater:{drawn.dataset.root}"), 48)
    media = drawn_media(drawn.dataset)
    assert media is not None
    pictures = np.concatenate(list(media.spec.draw_item(media.root, 0, 48, 48)))
    rows = patchify(torch.from_numpy(pictures).permute(0, 3, 1, 2), 8)
    clips = [clip for clip in data.usable_clips("train") if clip.media.endswith("0000")]
    assert torch.equal(data.rows(clips, 38)[0], rows)


def test_acre(tmp_path: Path) -> None:
    data = opened(replace(CONFIG, source="synthetic:acre-comp", data_dir=tmp_path))
    assert not [path for path in data.dataset.root.rglob("*") if path.suffix in (".avi", ".png")]
    rows = data.rows(data.usable_clips("train")[:1], 7)
    assert len(np.unique(rows.numpy())) > 100
