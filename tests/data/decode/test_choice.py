"""Which decoder a machine uses, and what goes to PyAV because DALI fails on it (simulated)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.decode.decoder import PyAVDecoder, default_workers, resolve_decoder
from ivcl_fast.errors import UserError
from tests.support.marks import NEEDS_DALI
from tests.support.painted import media, write_video


def test_which_decoder(monkeypatch):
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_decoder("auto") == resolve_decoder("dali") == "dali"
    assert default_workers("dali") <= 7
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_decoder("auto") == "pyav" and resolve_decoder("dali") == "dali"
    monkeypatch.setattr(decode, "_dali_installed", lambda: False)
    assert resolve_decoder("auto") == "pyav"
    with pytest.raises(UserError, match=r"decoder: .*got dali"):
        resolve_decoder("dali")


def moving(count: int) -> list[np.ndarray]:
    """Pictures of a square that moves a little."""
    pictures = np.full((count, 60, 80, 3), 100, np.uint8)
    for number, pixels in enumerate(pictures):
        pixels[20:32, 4 * number : 4 * number + 12] = 160
    return [*pictures]


def refuse(frames: torch.Tensor) -> torch.Tensor:
    raise VideoError("CUDA_ERROR_NOT_SUPPORTED")


@NEEDS_DALI
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.float().add(0.4).round().byte(), None), (lambda x: x // 2 + 64, "differ"),
        (lambda x: x[[0, 3, 1, 2, *range(4, len(x))]], "differ"), (refuse, "NOT_SUPPORTED"),
    ],
    ids=["same", "colours", "order", "error"],
)  # fmt: skip
def test_pyav_decodes_what_dali_gets_wrong(tmp_path, monkeypatch, caplog, change, reason):
    """Each codec and container is compared with FFmpeg once; the reason is logged once."""
    from ivcl_fast.data.decode.dali import DALIDecoder

    listed = [media(write_video(tmp_path / n, moving(17), "mjpeg")) for n in ("a.avi", "b.avi")]
    expected = PyAVDecoder(32).decode(listed[0])
    calls = []

    def by_dali(self, opened, frame_ids=None, crop=None):
        calls.append(opened.path.name)
        return change(expected)

    monkeypatch.setattr(DALIDecoder, "decode_by_dali", by_dali)
    decoder = DALIDecoder(32)
    for one in listed:
        found = decoder.decode(one)
        assert torch.equal(found, change(expected) if reason is None else expected)
    assert len(calls) == (1 if reason == "differ" else 2)
    assert caplog.text.count("PyAV decodes a file instead of DALI") == (reason is not None)
    assert reason is None or f"mjpeg in .avi: {reason}" in caplog.text or reason in caplog.text
