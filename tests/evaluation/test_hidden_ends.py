"""How the snitch is hidden at the end: scenes written by hand."""

from __future__ import annotations

import pytest

from ivcl_fast.evaluation.hidden_ends import HiddenEnd, hidden_end
from tests.evaluation.test_tracker import CORNER, COVERED, FAR, scene

PATHS = dict(snitch={0: CORNER, 6: FAR}, a={0: FAR, 3: CORNER, 6: FAR}, b={0: CORNER})
NESTED = ("b", "_contain", "a", 4, 5)
LIFTED = ("a", "_pick_place", None, 7, 8)
AGAIN = ("a", "_contain", "snitch", 8, 9)


@pytest.mark.parametrize(
    "movements, found",
    [
        ([], None),
        ([COVERED, LIFTED], None),
        ([COVERED], HiddenEnd(1, True)),
        ([COVERED, NESTED], HiddenEnd(2, True)),
        ([COVERED, LIFTED, AGAIN], HiddenEnd(1, False)),
    ],
)
def test_how_it_is_hidden(movements, found):
    assert hidden_end(scene(movements, **PATHS)) == found
