"""Tables: names are found, and nothing is an object per row."""

from __future__ import annotations

import tracemalloc

import numpy as np

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
