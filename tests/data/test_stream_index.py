"""The index of streaming: made once by any number of processes, and made again if it is damaged."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from ivcl_fast.data import stream_index
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.store.index import probe_media
from ivcl_fast.data.stream_index import saved_index
from tests.support.painted import media, picture, write_images, write_painted, write_video


def equal(found, expected) -> bool:
    """Compare two indexes."""
    return (
        found[1] == expected[1]
        and [*found[0]] == [*expected[0]]
        and all(
            a.info == b.info and np.array_equal(np.array(a.places), np.array(b.places))
            for a, b in zip(found[0].values(), expected[0].values(), strict=True)
        )
    )


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
    assert {name: one.info.frames for name, one in made[0].items()} == dict(a=7, b=4, c=3, p=3)
    located = {name for name, one in made[0].items() if one.places is not None}
    assert located == {"a", "c"}
    for name in located:
        content = (tmp_path / f"{name}.avi").read_bytes()
        assert all(content[at : at + 2] == b"\xff\xd8" for at, _ in made[0][name].places)
    assert made[1] == {"gone": "cannot be opened: No such file or directory"}
    assert json.loads((tmp_path / "index" / "bad_files.json").read_text()) == made[1]
    assert seen[-1] == (5, 5) and "1 of 5 videos cannot be used" in caplog.text
    seen.clear()
    again = saved_index(listed, tmp_path / "index", 1, lambda *now: seen.append(now))
    assert equal(again, made) and not seen
    listed[0].files[0].unlink()  # another data set now
    assert len(saved_index(listed, tmp_path / "index", 1)[0]) == 3


def test_a_finished_index_is_read_without_writing(tmp_path, listed, monkeypatch):
    """As in a folder that this user may only read."""
    made = saved_index(listed, tmp_path / "index", 1)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(stream_index, "locked", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert equal(saved_index(listed, tmp_path / "index", 1), made)


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
    assert equal(found, saved_index(now, tmp_path / "other", 1))
    assert equal(found, saved_index(now, tmp_path / "index", 1))


@pytest.mark.parametrize("name", ["index.json", "places.npy"])
def test_it_is_made_again_if_it_is_damaged(tmp_path, listed, name, caplog):
    made = saved_index(listed, tmp_path / "index", 1)
    file = tmp_path / "index" / name
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*rng.integers(len(whole), size=20).tolist(), None]:
        damaged = bytearray(whole)
        if at is not None:
            damaged[at] ^= 4
        file.write_bytes(damaged if at is not None else whole[: len(whole) // 2])
        caplog.clear()
        assert equal(saved_index(listed, tmp_path / "index", 1), made)
        assert file.read_bytes() == whole
        assert caplog.text.count("indexing again, the index is damaged or old") == 1
    file.unlink()
    assert equal(saved_index(listed, tmp_path / "index", 1), made)


def test_what_a_kill_left_is_deleted(tmp_path, listed):
    left = [tmp_path / "index" / name for name in ("index.json.1-2a.ivcl.tmp", "index.json.tmp")]
    left[0].parent.mkdir()
    for file in left:
        file.touch()
    saved_index(listed, tmp_path / "index", 1)
    assert [file.exists() for file in left] == [False, True]  # the other is somebody else's


def test_several_at_once_even_without_locks(tmp_path, listed, monkeypatch):
    """As on a file system without locks: each writes, and none takes another's temporary file.

    All have the same process number, as on several machines that share the file system.
    """

    def refuse(*_):
        raise OSError

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(saved_index(listed, tmp_path / "index", 1)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(equal(one, found[0]) for one in found)
    assert equal(saved_index(listed, tmp_path / "index", 1), found[0])
    assert not list((tmp_path / "index").glob("*.tmp"))


def test_it_is_made_again_if_an_earlier_version_made_it(tmp_path, listed, monkeypatch, caplog):
    monkeypatch.setattr(stream_index, "FORMAT", 1)
    made = saved_index(listed, tmp_path / "index", 1)
    monkeypatch.undo()
    assert equal(saved_index(listed, tmp_path / "index", 1), made)
    assert "the index is damaged or old: its format is 1, not " in caplog.text
