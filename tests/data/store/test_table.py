"""Tables: names are found, and nothing is an object per row."""

from __future__ import annotations

import tracemalloc

import numpy as np

from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.table import VERSION, Index, encoded, read_index, table_bytes


def saved(folder, names: list[str]) -> Index:
    columns = {"name": np.sort(encoded(names)), "frames": np.arange(len(names))}
    about = {"bad_files": {}, "settings": {"version": VERSION}}
    (folder / "index.safetensors").write_bytes(table_bytes(columns, about))
    return read_index(folder)


def test_names_are_found(tmp_path):
    index = saved(tmp_path, ["b", "ä", "a/b.avi", "\udcff.avi", ""])
    assert index.find(encoded(["a/b.avi", "c", "\udcff.avi", ""])).tolist() == [1, -1, 4, 0]
    assert saved(tmp_path, []).find(encoded(["a"])).tolist() == [-1]


def test_an_index_opens_without_an_object_per_clip(tmp_path):
    count = 10**5
    saved(tmp_path, [f"clip_{i:07d}" for i in range(count)])
    tracemalloc.start()
    opened = read_index(tmp_path)
    assert opened.find(encoded(["clip_0023456", "clip_999"])).tolist() == [23456, -1]
    assert tracemalloc.get_traced_memory()[1] < 100 * count
    tracemalloc.stop()


def test_a_store_of_a_hundred_million_frames_opens(tmp_path):
    """Its shards are sparse files, which take no space."""
    count, each, shards, row = 10**5, 10**3, 50, 3 * 4 * 4
    frames = np.full(count, each)
    names = encoded([f"clip_{i:05d}" for i in range(count)])
    columns = {"name": names, "frames": frames, "first": np.cumsum(frames) - frames}
    columns |= {"facts": np.full(count, b"{}"), "fps": np.full(count, 24.0)}
    size = count * each // shards * row
    listed = [(f"shard-{i:016x}", size, "0" * 64) for i in range(shards)]
    for name, *_ in listed:
        with (tmp_path / f"{name}.u8").open("wb") as file:
            file.truncate(size)
    with (tmp_path / f"{listed[-1][0]}.u8").open("r+b") as file:
        file.seek(size - row)
        file.write(bytes([7] * row))
    settings = {
        "version": VERSION, "image_size": 4, "patch_size": 4, "crop": "none", "decoder": "pyav"
    }  # fmt: skip
    about = {"settings": settings, "shards": listed, "bad_files": {}}
    (tmp_path / "index.safetensors").write_bytes(table_bytes(columns, about))
    tracemalloc.start()
    rows = FrameStore(tmp_path).rows("clip_99999", [each - 2, each - 1])
    assert tracemalloc.get_traced_memory()[1] < 100 * count
    tracemalloc.stop()
    assert rows[:, 0].tolist() == [[0] * row, [7] * row]
