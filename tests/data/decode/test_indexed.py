"""Clips of indexed media: the same frames as those of the whole file, without probing it."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.data.dataset import VideoError
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.indexed import Indexed, index_one, open_indexed
from ivcl_fast.data.decode.pyav import probe
from tests.support.painted import (
    VP9,
    media,
    picture,
    write_avi,
    write_blender_avi,
    write_video,
)

PICTURES = [picture(1, frame) for frame in range(9)]


def decoded(one, indexed: Indexed, ids=None) -> torch.Tensor:
    with open_indexed(one, indexed, "pyav") as opened:
        return make_decoder("pyav", 32).decode_open(opened, ids)


@pytest.mark.parametrize(
    "name, write, located",
    [
        ("a.avi", write_avi, True),
        ("b.avi", write_blender_avi, True),
        ("a.mkv", lambda *what: write_video(*what, "mjpeg"), False),
        ("a.mov", lambda *what: write_video(*what, "mjpeg"), True),
        ("a.webm", lambda *what: write_video(*what, "libvpx-vp9", **VP9), False),
        ("a.mp4", lambda *what: write_video(*what, "libx264"), False),
    ],
)
def test_the_same_frames(tmp_path, name, write, located):
    one = media(write(tmp_path / name, PICTURES))
    indexed = index_one(one)
    assert indexed.info == probe(one) and (indexed.places is not None) == located
    whole = make_decoder("pyav", 32).decode(one)
    assert torch.equal(decoded(one, indexed), whole)
    assert torch.equal(decoded(one, indexed, [8, 0, 8]), whole[[8, 0, 8]])
    with pytest.raises(IndexError, match="frames 0 to 8"):
        decoded(one, indexed, [9])


def test_a_file_that_has_changed(tmp_path):
    path = write_avi(tmp_path / "a.avi", PICTURES)
    one, whole = media(path), path.read_bytes()
    indexed = index_one(one)
    path.write_bytes(whole[:-2000])
    assert len(decoded(one, indexed, [0])) == 1
    with pytest.raises(VideoError, match="truncated: "):
        decoded(one, indexed, [0, 8])
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(VideoError, match=r"image at byte .* is not a complete JPEG"):
        decoded(one, indexed, [0])
    path.unlink()
    with pytest.raises(VideoError, match="cannot be read: No such file"):
        decoded(one, indexed, [0])
