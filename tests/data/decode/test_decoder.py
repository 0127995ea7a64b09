"""Which decoder a machine uses for a codec, with how many workers, and how long it waits."""

from __future__ import annotations

import av
import pytest
import torch

from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.decode.decoder import (
    DALI_GPU_CODECS,
    MAX_TIMEOUT,
    choose_decoder,
    decoding_gpu,
    decoding_timeout,
    default_workers,
    resolve_decoder,
)
from ivcl_fast.data.decode.media import VideoInfo, probe
from ivcl_fast.errors import UserError
from tests.support.painted import media, picture, write_video


def info(codec: str) -> VideoInfo:
    return VideoInfo(9, 24.0, codec, 80, 60)


def test_which_decoder(monkeypatch):
    with pytest.raises(UserError, match="'opencv' is not one of auto, dali, pyav"):
        resolve_decoder("opencv")  # type: ignore[arg-type]
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_decoder("auto") == resolve_decoder("dali") == "dali"
    assert choose_decoder(info("h264"), "auto") == ("dali", "DALI decodes it on the GPU")
    assert choose_decoder(info("wmv3"), "auto") == ("pyav", "DALI has no GPU decoder for wmv3")
    small = choose_decoder(info("vp9"), "auto")
    assert small == ("pyav", "frames of 80 x 60 are too small for the GPU's decoder")
    assert all(choose_decoder(info(codec), "dali")[0] == "dali" for codec in DALI_GPU_CODECS)
    assert default_workers(["pyav", "dali"]) <= 7
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_decoder("auto") == "pyav" and resolve_decoder("dali") == "dali"
    assert choose_decoder(info("vp9"), "auto") == (
        "pyav",
        "there is no GPU for DALI, and on a CPU PyAV is faster",
    )
    assert choose_decoder(info("vp9"), "dali")[0] == "dali"
    with pytest.raises(UserError, match=r"no CPU decoder for h264 \(it has mjpeg, png, vp8, vp9"):
        choose_decoder(info("h264"), "dali")
    monkeypatch.setattr(decode, "_dali_installed", lambda: False)
    assert resolve_decoder("auto") == resolve_decoder("pyav") == "pyav"
    assert choose_decoder(info("vp9"), "auto") == ("pyav", "DALI is not installed")
    with pytest.raises(UserError, match="dali is not installed"):
        resolve_decoder("dali")


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="FFmpeg has no AV1 encoder")
def test_av1_by_the_name_of_its_codec(tmp_path, monkeypatch):
    """FFmpeg's decoder of it is called libdav1d."""
    pictures = [picture(1, frame, 144, 160) for frame in range(2)]
    found = probe(media(write_video(tmp_path / "a.mkv", pictures, "libsvtav1", preset="11")))
    assert found.codec == "av1"
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_decoder(found, "auto") == ("dali", "DALI decodes it on the GPU")


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
