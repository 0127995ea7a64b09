"""The decoder of each of the media, where only a trial on a GPU (a stand-in here) can tell."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.decode.decoder import choose_decoders
from ivcl_fast.data.decode.media import VideoInfo, probe
from ivcl_fast.data.decode.pyav import PyAVDecoder
from ivcl_fast.errors import UserError
from tests.support.painted import media, picture, write_images, write_painted, write_video

H264 = "CUDA driver API error CUDA_ERROR_NOT_SUPPORTED (801)"


@pytest.fixture
def listed(tmp_path) -> list[Media]:
    pictures = [picture(1, frame) for frame in range(3)]
    return [
        media(write_painted(tmp_path / "a.avi", 1, 3)),
        *(media(write_video(tmp_path / f"h{i}.mp4", pictures, "libx264")) for i in range(5)),
        write_images(tmp_path, "p", 1, 2),
    ]


@pytest.fixture
def tried(monkeypatch) -> list[tuple[str, int | None]]:
    """Pretend a GPU whose NVDEC lacks h264; returns the files and GPUs of the trials."""
    found = []

    class Decoder:
        changed: ClassVar = {}  # what is changed of the frames, by suffix

        def __init__(self, image_size, gpu):
            self.image_size, self.gpu = image_size, gpu

        def decode_by_dali(self, opened, ids):
            path = getattr(opened, "path", None) or opened.files[0]
            found.append((path.name, self.gpu))
            if path.suffix == ".mp4":
                raise RuntimeError(f"Critical error in pipeline\nencountered:\n\n{H264}\nC++: x")
            if path.name == "broken.avi":
                raise VideoError("DALI cannot decode one of its frames: bad")
            frames = PyAVDecoder(self.image_size).decode_open(opened, ids)
            return self.changed.get(path.suffix, torch.clone)(frames)

    module = ModuleType("ivcl_fast.data.decode.dali")
    module.DALIDecoder = Decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    return found


def infos_of(listed: list[Media]) -> dict[str, VideoInfo]:
    return {one.name: probe(one) for one in listed if "broken" not in one.name}


def test_a_codec_that_the_gpu_lacks_goes_to_pyav_with_a_reason(listed, tried, caplog):
    caplog.set_level(logging.INFO, "ivcl_fast")
    chosen = choose_decoders(listed, infos_of(listed), "auto", 2)
    assert chosen == {"a": "dali", "p": "dali"} | {f"h{i}": "pyav" for i in range(5)}
    assert len(tried) == 2 + decode.TRIALS and {gpu for _, gpu in tried} == {2}
    assert (
        f"pyav for 5 h264 files, because DALI cannot decode it on this GPU ({H264})" in caplog.text
    )
    with pytest.raises(UserError, match=r"DALI cannot decode h264 on this GPU \(CUDA driver API"):
        choose_decoders(listed, infos_of(listed), "dali", 2)


def test_a_broken_file_does_not_speak_for_its_codec(listed, tried, tmp_path):
    broken = media(write_painted(tmp_path / "broken.avi", 1, 3))
    infos = infos_of(listed) | {"broken": probe(broken)}
    assert choose_decoders([broken, *listed], infos, "auto")["a"] == "dali"


def moving(count: int) -> list[np.ndarray]:
    """Pictures of a square that moves a little."""
    pictures = np.full((count, 60, 80, 3), 100, np.uint8)
    for number, pixels in enumerate(pictures):
        pixels[20:32, 4 * number : 4 * number + 12] = 160
    return [*pictures]


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        (lambda x: x.float().add(0.4).round().byte(), "dali"),
        (lambda x: x // 2 + 64, "pyav"),
        (lambda x: x[[0, 3, 1, 2, *range(4, len(x))]], "pyav"),
    ],
    ids=["same", "colours", "order"],
)
def test_frames_that_differ_from_those_of_ffmpeg(tmp_path, tried, caplog, change, chosen):
    """In one container, which need not speak for another."""
    caplog.set_level(logging.INFO, "ivcl_fast")
    listed = [
        media(write_video(tmp_path / name, moving(17), "mjpeg")) for name in ("a.avi", "b.mkv")
    ]
    sys.modules["ivcl_fast.data.decode.dali"].DALIDecoder.changed = {".avi": change}
    assert choose_decoders(listed, infos_of(listed), "auto") == {"a": chosen, "b": "dali"}
    said = "because DALI cannot decode it on this GPU (its frames differ from FFmpeg's)"
    assert (said in caplog.text) == (chosen == "pyav")
    assert choose_decoders(listed, infos_of(listed), "dali")["a"] == "dali"
    warned = "DALI as asked for, but of mjpeg files its frames differ from FFmpeg's"
    assert (warned in caplog.text) == (chosen == "pyav")


def test_a_dali_that_cannot_be_imported(listed, tried, monkeypatch):
    monkeypatch.setitem(sys.modules, "ivcl_fast.data.decode.dali", None)
    assert {*choose_decoders(listed, infos_of(listed), "auto").values()} == {"pyav"}


def test_nothing_is_tried_without_a_gpu(listed, tried, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {*choose_decoders(listed, infos_of(listed), "auto").values()} == {"pyav"}
    assert not tried
