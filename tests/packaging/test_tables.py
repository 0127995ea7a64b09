"""The generated tables of the documentation are what they would be now."""

from __future__ import annotations

import pytest

from docs import tables
from docs.markers import written_anew


@pytest.mark.parametrize("path", tables.pages(), ids=lambda path: path.name)
def test_writing_the_tables_again_changes_nothing(path):
    assert written_anew(path.read_text(), tables.KINDS) == path.read_text()
