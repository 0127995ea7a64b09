"""The index of streaming is made once, and again for media that change."""

from __future__ import annotations

from ivcl_fast.data import stream_index
from ivcl_fast.data.decode.pyav import probe
from ivcl_fast.data.store.table import decoded
from ivcl_fast.data.stream_index import info_of, saved_index
from tests.support.painted import media, picture, write_images, write_painted, write_video


def test_only_new_and_changed_media_are_probed(tmp_path, monkeypatch):
    pictures = [picture(3, frame) for frame in range(4)]
    listed = [
        media(write_painted(tmp_path / "a.avi", 1, 7)),
        media(write_video(tmp_path / "b.mp4", pictures, "libx264")),
        media(write_painted(tmp_path / "c.avi", 2, 3)),
        write_images(tmp_path, "p", 4, 3),
        media(tmp_path / "gone.webm"),
    ]
    probed: list[str] = []
    monkeypatch.setattr(stream_index, "probe", lambda one: [probed.append(one.name), probe(one)][1])
    seen: list[tuple[int, int]] = []
    made = saved_index(listed, tmp_path / "index", 1, lambda *now: seen.append(now))
    names = list(map(decoded, made.names))
    assert dict(zip(names, made.frames.tolist(), strict=True)) == dict(a=7, b=4, c=3, p=3)
    for row, one in enumerate(listed[:4]):
        assert info_of(made, row) == probe(one)
    assert made.bad_files == {"gone": "cannot be opened: No such file or directory"}
    assert seen[0] == (0, 5) and seen[-1] == (5, 5)
    probed.clear()
    saved_index(listed, tmp_path / "index", 1)
    assert not probed
    write_painted(listed[2].files[0], 2, 6)
    now = [*listed[1:], media(write_painted(tmp_path / "d.avi", 5, 2))]
    found = saved_index(now, tmp_path / "index", 1)
    assert probed == ["c", "d"] and found.frames.tolist() == [4, 6, 2, 3]
