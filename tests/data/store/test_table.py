"""Tables: columns come back as they were, names are found, and nothing is an object per row."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ivcl_fast.data.store.table import Index, read_table, write_table


def test_columns_and_facts(tmp_path):
    columns = {
        "a": np.arange(5, dtype=np.int32), "b": np.ones((2, 3)), "none": np.empty(0, np.uint8),
    }  # fmt: skip
    write_table(tmp_path / "t", columns, {"version": 1})
    found, about = read_table(tmp_path / "t")
    assert about == {"version": 1} and found.keys() == columns.keys()
    for name, column in columns.items():
        np.testing.assert_array_equal(found[name], column)


def test_names_are_found(tmp_path):
    names = ["b", "ä", "a/b.avi", "\udcff.avi", ""]
    Index.make(names, {"frames": np.arange(5, dtype=np.int32)}, {"bad_files": {}}).write(
        tmp_path / "i"
    )
    index = Index.read(tmp_path / "i")
    assert list(index.names) == names and index.names[-1] == "" and index.names[1:3] == names[1:3]
    assert index.find(["a/b.avi", "c", "\udcff.avi"]).tolist() == [2, -1, 3]
    empty = Index.make([], {"frames": np.empty(0, np.int32)}, {"bad_files": {}})
    assert empty.find(["a"]).tolist() == [-1]


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_damaged_file_is_a_value_error(tmp_path, keep):
    write_table(tmp_path / "t", {"a": np.arange(100)}, {})
    content = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(content[:keep])
    with pytest.raises(ValueError):
        read_table(tmp_path / "t")


def test_an_index_opens_without_an_object_per_clip(tmp_path):
    count = 10**5
    index = Index.make(
        (f"clip_{i:07d}" for i in range(count)), {"frames": np.full(count, 301)}, {"bad_files": {}}
    )
    index.write(tmp_path / "index")
    del index
    tracemalloc.start()
    opened = Index.read(tmp_path / "index")
    assert opened.find(["clip_0023456", "clip_999"]).tolist() == [23456, -1]
    assert tracemalloc.get_traced_memory()[1] < 100 * count
    tracemalloc.stop()
