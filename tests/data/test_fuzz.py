"""Damaged videos give a one-line error or are read; no crash or hang ends the command.

``IVCL_FAST_FUZZ=1000`` sets how many damaged files there are in all.
"""

from __future__ import annotations

import os
import random

import pytest

from ivcl_fast import prepare
from ivcl_fast.data.decode.decoder import probe
from ivcl_fast.data.store.frame_store import FrameStore
from tests.support.painted import VP9, media, picture, write_blender_avi, write_painted, write_video

COUNT = int(os.environ.get("IVCL_FAST_FUZZ", 60))


def damaged(whole: bytes, seed: int) -> bytes:
    """Return a copy that is truncated or has a bit flipped or bytes overwritten or deleted."""
    rng = random.Random(seed)
    contents = bytearray(whole)
    at = rng.randrange(len(contents)) if rng.random() < 0.6 else rng.randrange(min(600, len(whole)))
    kind, length = rng.choice(("truncate", "flip", "noise", "delete")), rng.choice((1, 4, 30, 300))
    if kind == "truncate":
        del contents[at:]
    elif kind == "flip":
        contents[at] ^= 1 << rng.randrange(8)
    elif kind == "noise":
        contents[at : at + length] = rng.randbytes(length)
    else:
        del contents[at : at + length]
    return bytes(contents)


@pytest.mark.usefixtures("forked_workers")
def test_damaged_videos_through_prepare(tmp_path, command):
    """No damaged file is kept with fewer frames in silence, and none ends the command."""
    pictures = [picture(1, i) for i in range(9)]
    whole = [
        write_painted(tmp_path / "a.avi", 1, 9),
        write_blender_avi(tmp_path / "b.avi", pictures),
        write_video(tmp_path / "c.webm", pictures, "libvpx-vp9", **VP9),
        write_video(tmp_path / "d.mp4", pictures, "libx264", bf="2"),
        write_video(tmp_path / "e.mkv", pictures, "libx264"),
    ]
    contents = {path: path.read_bytes() for path in whole}
    (tmp_path / "clips").mkdir()
    for seed in range(COUNT):
        path = whole[seed % len(whole)]
        target = tmp_path / "clips" / f"{seed:05d}{path.suffix}"
        target.write_bytes(damaged(contents[path], seed))
    flags = ("--image-size", "16", "--decoder", "pyav", "--workers", "2")
    status, _, error = command(prepare.main, f"videos:{tmp_path / 'clips'}", *flags)
    assert status == 0 and "Traceback" not in error
    store = FrameStore(tmp_path / "clips" / "store-16-p8-pyav")
    store.verify()
    assert len(store.names) + len(store.bad_files) == COUNT
    assert all("\n" not in reason for reason in store.bad_files.values())
    assert not any("its process died" in reason for reason in store.bad_files.values())
    fewer = [name for name in store.names if store.num_frames(name) < 9]
    assert all(probe(media(tmp_path / "clips" / name)).warning for name in fewer)
