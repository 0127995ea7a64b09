"""The number of workers by default, and the store that is used, on a simulated GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ivcl_fast import prepare
from ivcl_fast.config import IVCLConfig
from ivcl_fast.data import datamodule
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.decode.interface import NVDECS
from ivcl_fast.data.store import build, shards
from ivcl_fast.data.store.build import build_store
from tests.support.painted import media, write_painted


class Enough(Exception):
    """The number of workers is known."""


@pytest.fixture(autouse=True)
def gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    monkeypatch.setattr(decode, "usable_cpus", lambda: 2 * NVDECS)
    for module in (datamodule, prepare):  # of which one process probes few videos
        monkeypatch.setattr(module, "usable_cpus", lambda: 1)


def test_of_a_store(tmp_path, monkeypatch):
    found = []

    def make_pool(workers):
        found.append(workers)
        raise Enough

    monkeypatch.setattr(shards, "WorkerPool", make_pool)
    videos = [media(write_painted(tmp_path / "a.avi", 1, 3))]
    for options in ({}, {"decoder": "pyav"}, {"workers": 1}):
        with pytest.raises(Enough):
            build_store(videos, tmp_path / "store", 32, 8, **options)
    assert found == [NVDECS, 2 * NVDECS, 1]


def test_of_streaming(tmp_path, monkeypatch):
    found = []

    def make_loader(*_, workers, **__):
        found.append(workers)
        raise Enough

    monkeypatch.setattr(datamodule, "StreamLoader", make_loader)
    for part in ("train", "val"):
        (tmp_path / part / "dog").mkdir(parents=True)
        write_painted(tmp_path / part / "dog" / f"{part}.avi", 1, 5)
    cfg = IVCLConfig(image_size=32, patch_size=8, num_frames=5, num_query_frames=2)
    for workers in (None, 1):
        config = DataConfig(f"videos:{tmp_path}", loader="stream", workers=workers)
        data = datamodule.open_data(config, cfg)
        with pytest.raises(Enough):
            data.loader("train", batch_size=1, num_frames=5, seed=0, training=False)
    assert found == [NVDECS, 1]


def test_of_an_estimate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "measure_decoding", lambda *_: 1.0)
    videos = [media(write_painted(tmp_path / "a.avi", 1, 3))]
    for workers in (None, 1):
        config = prepare.PrepareConfig(f"videos:{tmp_path}", workers=workers)
        prepare.print_estimate(videos, tmp_path, config)
        assert f"by each of {workers or NVDECS} workers" in capsys.readouterr().out


def test_a_finished_store_of_pyav_is_not_decoded_again(tmp_path, monkeypatch):
    """By ``auto``, as long as it is of the same files and DALI has none."""
    one, two = (Media(n, (write_painted(tmp_path / n, 1, 3),)) for n in ("a.avi", "b.avi"))
    pyav, dali = (tmp_path / f"store-32-p8-{name}" for name in ("pyav", "dali"))
    found = partial(build.find_store, tmp_path, [one], (32, 8))
    assert found(decoder="auto") == (dali, "auto")
    build_store([one], pyav, 32, 8, "pyav", 1)
    assert found(decoder="auto") == (pyav, "pyav")
    assert found(decoder="dali") == (dali, "dali")
    assert build.find_store(tmp_path, [one, two], (32, 8), "auto") == (dali, "auto")
    build_store([one, two], pyav, 32, 8, "pyav", 1)
    monkeypatch.setattr(shards.Build, "run", lambda *_: pytest.fail("decoded again"))
    cfg = IVCLConfig(image_size=32, patch_size=8)
    assert datamodule.open_data(DataConfig(f"videos:{tmp_path}"), cfg).bad_files_path.parent == pyav
    dali.mkdir()
    (dali / shards.INDEX).touch()
    assert build.find_store(tmp_path, [one, two], (32, 8), "auto") == (dali, "auto")
