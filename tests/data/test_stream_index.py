"""The index of streaming is made once, and again for media that change."""

from __future__ import annotations

import numpy as np
import pytest

from ivcl_fast.data import stream_index
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.indexed import index_one
from ivcl_fast.data.store import shards
from ivcl_fast.data.stream_index import StreamIndex, saved_index
from tests.support.painted import media, picture, write_images, write_painted, write_video


def shown(index: StreamIndex) -> list:
    found = [index.media(row) for row in range(len(index))]
    places = [None if one.places is None else one.places.tolist() for one in found]
    return [[*index.names], [one.info for one in found], places, index.bad_files]


@pytest.fixture
def listed(tmp_path) -> list[Media]:
    """Two videos with located frames, one without, images, and a missing file."""
    pictures = [picture(3, frame) for frame in range(4)]
    return [
        media(write_painted(tmp_path / "a.avi", 1, 7)),
        media(write_video(tmp_path / "b.mp4", pictures, "libx264")),
        media(write_painted(tmp_path / "c.avi", 2, 3)),
        write_images(tmp_path, "p", 4, 3),
        media(tmp_path / "gone.webm"),
    ]


def test_it_is_made_once(tmp_path, listed, monkeypatch):
    """Then it is only read, as in a folder that this user may not write."""
    seen: list[tuple[int, int]] = []
    made = saved_index(listed, tmp_path / "index", 1, lambda *now: seen.append(now))
    assert dict(zip(made.names, made.frames.tolist(), strict=True)) == dict(a=7, b=4, c=3, p=3)
    for row, one in enumerate(listed[:4]):
        found, expected = made.media(row), index_one(one)
        assert found.info == expected.info
        assert np.array_equal(np.array(found.places), np.array(expected.places))
    assert made.bad_files == {"gone": "cannot be opened: No such file or directory"}
    assert seen[0] == (0, 5) and seen[-1] == (5, 5)
    monkeypatch.setattr(shards.Build, "run", lambda *_: pytest.fail("made again"))
    assert shown(saved_index(listed, tmp_path / "index", 1)) == shown(made)


def test_only_changed_media_are_probed(tmp_path, listed, monkeypatch):
    opened = saved_index(listed, tmp_path / "index", 1)
    before = shown(opened)
    probed: list[str] = []
    monkeypatch.setattr(
        stream_index, "index_one", lambda one: [probed.append(one.name), index_one(one)][1]
    )
    write_painted(listed[2].files[0], 2, 6)
    now = [*listed[1:], media(write_painted(tmp_path / "d.avi", 5, 2))]
    found = saved_index(now, tmp_path / "index", 1)
    assert probed == ["c", "d"]
    assert shown(found) == shown(saved_index(now, tmp_path / "other", 1))
    assert shown(opened) == before  # though its files are replaced
