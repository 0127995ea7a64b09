"""The number of workers by default, on a pretended GPU that decodes, or does not."""

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
from ivcl_fast.data.store import build
from ivcl_fast.data.store.build import build_store
from tests.support.painted import media, write_painted

STORE = prepare.StoreFlags(image_size=32)
CPUS = 2 * NVDECS


class Enough(Exception):
    """The number of workers is known."""


@pytest.fixture(params=["a GPU that decodes", "a container without the driver's library"])
def expected(request, monkeypatch) -> int:
    """Pretend a GPU; returns the number of workers that it should have."""
    works = request.param == "a GPU that decodes"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    monkeypatch.setattr(decode, "_dali_fails", lambda *_: None if works else "no library")
    monkeypatch.setattr(decode, "usable_cpus", lambda: CPUS)
    for module in (datamodule, prepare):  # of which one process probes few videos
        monkeypatch.setattr(module, "usable_cpus", lambda: 1)
    return NVDECS if works else CPUS


def test_of_a_store(tmp_path, monkeypatch, expected):
    """Before the decoder of any video is tried."""
    found = []

    def make_pool(workers):
        found.append(workers)
        raise Enough

    monkeypatch.setattr(build, "WorkerPool", make_pool)
    videos = [media(write_painted(tmp_path / "a.avi", 1, 3))]
    for workers in (None, 1):
        with pytest.raises(Enough):
            build_store(videos, tmp_path / "store", 32, 8, workers=workers)
    assert found == [NVDECS, 1]


def test_a_finished_store_of_pyav_is_not_decoded_again(tmp_path, monkeypatch, expected, caplog):
    """By ``auto``, as long as it is of the same files and DALI has none."""
    caplog.set_level("INFO")
    one, two = (Media(n, (write_painted(tmp_path / n, 1, 3),)) for n in ("a.avi", "b.avi"))
    pyav, dali = (tmp_path / f"store-32-p8-{name}" for name in ("pyav", "dali"))
    found = partial(build.find_store, tmp_path, [one], (32, 8))
    assert found(decoder="auto") == (dali, "auto")
    build_store([one], pyav, 32, 8, "pyav", 1)
    assert found(decoder="auto") == (pyav, "pyav")
    assert (
        f"store: PyAV has made {pyav}, which is used; --decoder dali makes another" in caplog.text
    )
    assert found(decoder="dali") == (dali, "dali")
    source, cfg = DataConfig(f"videos:{tmp_path}"), IVCLConfig(image_size=32, patch_size=8)
    assert build.find_store(tmp_path, [one, two], (32, 8), "auto") == (dali, "auto")
    build_store([one, two], pyav, 32, 8, "pyav", 1)
    monkeypatch.setattr(build._Build, "_build", lambda *_: pytest.fail("decoded again"))
    assert datamodule.open_data(source, cfg).bad_files_path.parent == pyav
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    prepare.prepare(prepare.PrepareConfig(f"videos:{tmp_path}", store=STORE))
    dali.mkdir()
    (dali / build.INDEX).touch()
    assert build.find_store(tmp_path, [one, two], (32, 8), "auto") == (dali, "auto")


def test_of_streaming(tmp_path, monkeypatch, expected):
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
    assert found == [expected, 1]


def test_of_an_estimate(tmp_path, monkeypatch, capsys, expected):
    monkeypatch.setattr(prepare, "measure_decoding", lambda *_: 1.0)
    videos = [media(write_painted(tmp_path / "a.avi", 1, 3))]
    for workers in (None, 1):
        config = prepare.PrepareConfig(f"videos:{tmp_path}", workers=workers)
        prepare.print_estimate(videos, tmp_path, config)
        assert f"by each of {workers or expected} workers" in capsys.readouterr().out
