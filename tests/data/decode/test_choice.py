"""Which decoder a machine uses, including the trial on a GPU (simulated), and its timeout."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import av
import numpy as np
import pytest
import torch

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.decode.decoder import (
    DALI_CODECS,
    MAX_TIMEOUT,
    choose_decoder,
    choose_decoders,
    decoding_timeout,
    default_workers,
    resolve_decoder,
)
from ivcl_fast.data.decode.info import VideoInfo
from ivcl_fast.data.decode.interface import decoding_gpu
from ivcl_fast.data.decode.media import probe
from ivcl_fast.data.decode.pyav import PyAVDecoder
from ivcl_fast.errors import UserError
from tests.support.painted import media, picture, write_images, write_painted, write_video

H264 = "CUDA driver API error CUDA_ERROR_NOT_SUPPORTED (801)"


def info(codec: str) -> VideoInfo:
    return VideoInfo(9, 24.0, codec, 80, 60)


def test_which_decoder(monkeypatch):
    with pytest.raises(UserError, match="decoder: expected one of auto, dali, pyav, got 'opencv'"):
        resolve_decoder("opencv")  # type: ignore[arg-type]
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_decoder("auto") == resolve_decoder("dali") == "dali"
    assert all(choose_decoder(info(codec), "auto")[0] == "dali" for codec in DALI_CODECS)
    assert choose_decoder(info("wmv3"), "auto") == ("pyav", "DALI has no decoder for wmv3")
    assert choose_decoder(info("wmv3"), "dali")[0] == "dali"
    assert choose_decoder(info("h264"), "pyav")[0] == "pyav"
    assert default_workers(["pyav", "dali"]) <= 7
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_decoder("auto") == "pyav" and resolve_decoder("dali") == "dali"
    assert choose_decoder(info("vp9"), "auto") == ("pyav", "DALI is slower without a GPU")
    monkeypatch.setattr(decode, "_dali_installed", lambda: False)
    assert choose_decoder(info("vp9"), "auto") == ("pyav", "DALI is not installed")
    with pytest.raises(UserError, match="dali is not installed"):
        resolve_decoder("dali")


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="FFmpeg has no AV1 encoder")
def test_av1_by_the_name_of_its_codec(tmp_path):
    """FFmpeg's decoder of it is called libdav1d."""
    pictures = [picture(1, frame, 144, 160) for frame in range(2)]
    path = write_video(tmp_path / "a.mkv", pictures, "libsvtav1", preset="11")
    assert probe(media(path)).codec == "av1"


def test_the_gpu_of_a_run(monkeypatch):
    assert torch.cuda.is_available() or decoding_gpu(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found = [decoding_gpu(d and torch.device(d)) for d in (None, "cpu", "cuda", "cuda:0", "cuda:3")]
    assert found == [1, 1, 1, 0, 3]


def test_long_videos_have_a_longer_timeout():
    assert decoding_timeout(120, [301, 38]) == 120
    assert decoding_timeout(120, [301, 36_000]) == 3600
    assert decoding_timeout(120, []) == 120
    assert decoding_timeout(120, [2**31]) == MAX_TIMEOUT < 24 * 3600


@pytest.fixture
def tried(monkeypatch) -> list[tuple[str, int | None]]:
    """Simulate a GPU whose NVDEC lacks h264; returns the files and GPUs of the trials."""
    found = []

    class Decoder:
        changed: ClassVar = {}  # changes of the frames by suffix

        def __init__(self, image_size, gpu):
            self.image_size, self.gpu = image_size, gpu

        def decode_by_dali(self, opened, ids):
            path = getattr(opened, "path", None) or opened.files[0]
            found.append((path.name, self.gpu))
            if path.suffix == ".mp4":
                raise RuntimeError(f"Critical error in pipeline\nencountered:\n\n{H264}\nC++: x")
            frames = PyAVDecoder(self.image_size).decode_open(opened, ids)
            return self.changed.get(path.suffix, torch.clone)(frames)

    module = ModuleType("ivcl_fast.data.decode.dali")
    module.DALIDecoder = Decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    return found


def chosen(listed: list[Media], decoder: decode.DecoderName) -> dict[str, str]:
    return {**choose_decoders(listed, {one.name: probe(one) for one in listed}, decoder, 2)}


def several(folder: Path) -> list[Media]:
    pictures = [picture(1, frame) for frame in range(3)]
    return [
        media(write_painted(folder / "a.avi", 1, 3)),
        *(media(write_video(folder / f"h{i}.mp4", pictures, "libx264")) for i in range(2)),
        write_images(folder, "p", 1, 2),
    ]


def test_a_codec_that_the_gpu_lacks_goes_to_pyav_with_a_reason(tmp_path, tried, caplog):
    caplog.set_level(logging.INFO, "ivcl_fast")
    listed = several(tmp_path)
    assert chosen(listed, "auto") == {"a": "dali", "p": "dali", "h0": "pyav", "h1": "pyav"}
    assert len(tried) == 3 and {gpu for _, gpu in tried} == {2}
    assert f"pyav for 2 h264 files, because DALI fails on this GPU: {H264}" in caplog.text
    with pytest.raises(UserError, match=r"--decoder: .* for h264 on this GPU, got dali: CUDA"):
        chosen(listed, "dali")


def moving(count: int) -> list[np.ndarray]:
    """Pictures of a square that moves a little."""
    pictures = np.full((count, 60, 80, 3), 100, np.uint8)
    for number, pixels in enumerate(pictures):
        pixels[20:32, 4 * number : 4 * number + 12] = 160
    return [*pictures]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x.float().add(0.4).round().byte(), "dali"),
        (lambda x: x // 2 + 64, "pyav"),
        (lambda x: x[[0, 3, 1, 2, *range(4, len(x))]], "pyav"),
    ],
    ids=["same", "colours", "order"],
)
def test_frames_that_differ_from_those_of_ffmpeg(tmp_path, tried, change, expected):
    listed = [
        media(write_video(tmp_path / name, moving(17), "mjpeg")) for name in ("a.avi", "b.mkv")
    ]
    sys.modules["ivcl_fast.data.decode.dali"].DALIDecoder.changed = {".avi": change}
    assert chosen(listed, "auto") == {"a": expected, "b": "dali"}
    if expected == "pyav":
        with pytest.raises(UserError, match="its frames differ from FFmpeg's"):
            chosen(listed, "dali")


def test_without_a_working_dali_or_gpu(tmp_path, tried, monkeypatch):
    listed = several(tmp_path)
    monkeypatch.setitem(sys.modules, "ivcl_fast.data.decode.dali", None)
    assert {*chosen(listed, "auto").values()} == {"pyav"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {*chosen(listed, "auto").values()} == {"pyav"} and not tried
