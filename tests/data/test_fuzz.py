"""Damaged files of every kind give a one-line error or are read; no crash, hang or leak.

``IVCL_FAST_FUZZ=1000`` sets how many damaged files there are in all.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivcl_fast import prepare
from ivcl_fast.command import run_command
from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode import decoder as decode
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.media import probe
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.workers import WorkerPool
from tests.support.painted import VP9, media, picture, write_blender_avi, write_painted, write_video

COUNT = int(os.environ.get("IVCL_FAST_FUZZ", 240))
LEAK_BYTES = 48 * 2**20


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def damaged(whole: bytes, seed: int) -> bytes:
    """Return a copy that is truncated, flipped, overwritten, or has inserted or deleted bytes."""
    rng = random.Random(seed)
    contents = bytearray(whole)
    at = rng.randrange(len(contents)) if rng.random() < 0.6 else rng.randrange(min(600, len(whole)))
    length = rng.choice((1, 4, 30, 300))
    kind = rng.choice(("truncate", "flip", "zero", "noise", "insert", "delete"))
    if kind == "truncate":
        del contents[at:]
    elif kind == "flip":
        for _ in range(rng.choice((1, 8, 64))):
            contents[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        contents[at : at + length] = bytes(len(contents[at : at + length]))
    elif kind == "noise":
        contents[at : at + length] = rng.randbytes(len(contents[at : at + length]))
    elif kind == "insert":
        contents[at:at] = rng.randbytes(length)
    else:
        del contents[at : at + length]
    return bytes(contents)


def decode_damaged(task) -> tuple[Counter[str], int]:
    """Count the outcomes, and the growth of the process; in a worker, as decoders are native."""
    path, decoder, seeds = task
    whole = path.read_bytes()
    outcomes: Counter[str] = Counter()
    settled = resident()
    for number, seed in enumerate(seeds):
        target = path.with_name(f"damaged-{path.name}")  # of this task: two run at a time
        target.write_bytes(damaged(whole, seed))
        one = Media("damaged", (target,))
        try:
            info = probe(one)
            frames = make_decoder(decoder, 32).decode(one)
            assert tuple(frames.shape) == (info.frames, 3, 32, 32), seed
            outcomes["decoded"] += 1
        except VideoError as error:
            assert "\n" not in str(error) and str(error), seed
            outcomes["refused"] += 1
        if number == len(seeds) // 4:
            settled = resident()
    return outcomes, resident() - settled


def samples(folder: Path) -> list[Path]:
    pictures = [picture(1, i) for i in range(9)]
    made = [
        write_painted(folder / "a.avi", 1, 9),
        write_blender_avi(folder / "b.avi", pictures),
        write_video(folder / "c.webm", pictures, "libvpx-vp9", **VP9),
        write_video(folder / "d.mp4", pictures, "libx264"),
        folder / "e.png",
        folder / "f.jpg",
    ]
    Image.fromarray(np.dstack([pictures[0], pictures[1][..., :1]])).save(made[-2])
    Image.fromarray(pictures[0]).save(made[-1])
    return made


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_damaged_media(tmp_path, decoder):
    """DALI's own reader of WebM may crash, which ends only its worker."""
    if decoder == "dali" and not decode._dali_installed():
        pytest.skip("DALI is not installed")
    paths = [p for p in samples(tmp_path) if decoder == "pyav" or p.suffix != ".mp4"]
    count = COUNT // len(paths) // (1 if decoder == "pyav" else 4)
    tasks = [(path, decoder, range(1000 * i, 1000 * i + count)) for i, path in enumerate(paths)]
    lost: list[str] = []

    def go_on(task, reason: str):
        lost.append(reason)
        path, name, seeds = task
        return path, name, seeds[len(seeds) // 2 :]

    with WorkerPool(2) as pool:
        results = list(pool.run(decode_damaged, tasks, go_on))
    assert all(outcomes["refused"] for outcomes, _ in results)
    assert max(grown for _, grown in results) < LEAK_BYTES
    assert not lost or (decoder == "dali" and len(lost) <= count // 100 + 1), lost


def test_damaged_videos_through_prepare(tmp_path, monkeypatch, capsys):
    """No damaged file is kept with fewer frames in silence, and none ends the command."""
    whole = [path for path in samples(tmp_path) if path.suffix not in (".png", ".jpg")]
    pictures = [picture(1, i) for i in range(9)]
    whole.append(write_video(tmp_path / "g.mp4", pictures, "libx264", bf="2"))
    whole.append(write_video(tmp_path / "h.mkv", pictures, "libx264"))
    contents = {path: path.read_bytes() for path in whole}
    (tmp_path / "clips").mkdir()
    for seed in range(COUNT // 4):
        path = whole[seed % len(whole)]
        target = tmp_path / "clips" / f"{seed:05d}{path.suffix}"
        target.write_bytes(damaged(contents[path], seed))
    flags = ("--image-size", "16", "--decoder", "pyav", "--workers", "2")
    monkeypatch.setattr(sys, "argv", ["prepare", f"videos:{tmp_path / 'clips'}", *flags])
    with pytest.raises(SystemExit) as ended:
        run_command(prepare.main)
    assert ended.value.code == 0 and "Traceback" not in capsys.readouterr().err
    store = FrameStore(tmp_path / "clips" / "store-16-p8-pyav")
    store.verify()
    fewer = [name for name in store.names if store.num_frames(name) < 9]
    silent = [name for name in fewer if not probe(media(tmp_path / "clips" / name)).warning]
    print(f"{COUNT // 4} damaged: {len(store.names)} kept, {len(store.bad_files)} refused")
    assert len(store.names) + len(store.bad_files) == COUNT // 4
    assert not silent
