"""Tables: names are found, and nothing is an object per row."""

from __future__ import annotations

import tracemalloc

import numpy as np

from ivcl_fast.data.store.table import Index


def test_names_are_found(tmp_path):
    names = ["b", "ä", "a/b.avi", "\udcff.avi", ""]
    made = Index.make(names, {"frames": np.arange(5, dtype=np.int32)}, {"bad_files": {}})
    (tmp_path / "i").write_bytes(made.to_bytes())
    index = Index.read(tmp_path / "i")
    assert list(index.names) == names and index.names[-1] == "" and index.names[1:3] == names[1:3]
    assert index.find(["a/b.avi", "c", "\udcff.avi"]).tolist() == [2, -1, 3]
    empty = Index.make([], {"frames": np.empty(0, np.int32)}, {"bad_files": {}})
    assert empty.find(["a"]).tolist() == [-1]


def test_an_index_opens_without_an_object_per_clip(tmp_path):
    count = 10**5
    index = Index.make(
        (f"clip_{i:07d}" for i in range(count)), {"frames": np.full(count, 301)}, {"bad_files": {}}
    )
    (tmp_path / "index").write_bytes(index.to_bytes())
    del index
    tracemalloc.start()
    opened = Index.read(tmp_path / "index")
    assert opened.find(["clip_0023456", "clip_999"]).tolist() == [23456, -1]
    assert tracemalloc.get_traced_memory()[1] < 100 * count
    tracemalloc.stop()
