"""The index of streaming: made once by any number of processes, and made again if it is damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from ivcl_fast.data import stream_index
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.indexed import index_one
from ivcl_fast.data.store.table import Index
from ivcl_fast.data.stream_index import indexed_media, probe_media, saved_index
from ivcl_fast.errors import UserError
from tests.support.painted import media, picture, write_images, write_painted, write_video


def shown(index: Index) -> list:
    found = [indexed_media(index, row) for row in range(len(index))]
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


def test_it_is_made_once(tmp_path, listed, caplog):
    seen: list[tuple[int, int]] = []
    made = saved_index(listed, tmp_path / "index", 1, lambda *now: seen.append(now))
    assert dict(zip(made.names, made.frames.tolist(), strict=True)) == dict(a=7, b=4, c=3, p=3)
    for row, one in enumerate(listed[:4]):
        found, expected = indexed_media(made, row), index_one(one)
        assert found.info == expected.info
        assert np.array_equal(np.array(found.places), np.array(expected.places))
    assert made.bad_files == {"gone": "cannot be opened: No such file or directory"}
    assert seen[-1] == (5, 5) and "1 of 5 videos cannot be used" in caplog.text
    seen.clear()
    again = saved_index(listed, tmp_path / "index", 1, lambda *now: seen.append(now))
    assert shown(again) == shown(made) and not seen


def test_a_finished_index_is_read_without_writing(tmp_path, listed, monkeypatch):
    """As in a folder that this user may only read."""
    made = saved_index(listed, tmp_path / "index", 1)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(stream_index, "locked", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert shown(saved_index(listed, tmp_path / "index", 1)) == shown(made)


def test_only_changed_media_are_probed(tmp_path, listed, monkeypatch):
    saved_index(listed, tmp_path / "index", 1)
    probed: list[str] = []

    def spy(media, *arguments):
        probed.extend(one.name for one in media)
        return probe_media(media, *arguments)

    monkeypatch.setattr(stream_index, "probe_media", spy)
    write_painted(listed[2].files[0], 2, 6)
    now = [*listed[1:], media(write_painted(tmp_path / "d.avi", 5, 2))]
    found = saved_index(now, tmp_path / "index", 1)
    assert probed == ["c", "d"]
    monkeypatch.undo()
    assert shown(found) == shown(saved_index(now, tmp_path / "other", 1))


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_it_is_made_again_if_it_is_damaged(tmp_path, listed, keep, caplog):
    made = shown(saved_index(listed, tmp_path / "index", 1))
    file = tmp_path / "index" / "index.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    assert shown(saved_index(listed, tmp_path / "index", 1)) == made
    assert file.read_bytes() == whole and caplog.text.count("indexing again") == 1


def test_several_at_once(tmp_path, listed):
    found: list[Index] = []
    threads = [
        threading.Thread(target=lambda: found.append(saved_index(listed, tmp_path / "index", 1)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(shown(one) == shown(found[0]) for one in found)


def test_media_need_names_of_their_own(tmp_path, listed):
    with pytest.raises(UserError, match="same name"):
        saved_index([listed[0], listed[0]], tmp_path / "index", 1)
    with pytest.raises(UserError, match="no videos"):
        saved_index([], tmp_path / "index", 1)
