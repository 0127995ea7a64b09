"""Tables of object states: what a picture says is what was drawn, and nothing hidden."""

from __future__ import annotations

import numpy as np
import pytest

from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.frame_labels import make_frame_labels
from ivcl_fast.data.synthetic.cater.scene_file import frame_times
from ivcl_fast.data.synthetic.cater.states import PATCH, ROW, draw_states
from ivcl_fast.data.synthetic.cater.video import OBJECT_COLORS, draw_video
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.data.synthetic.scene import MATERIALS, SHAPES, SIZES
from ivcl_fast.errors import UserError

KINDS = (*SHAPES, "spl")


def read_states(picture: np.ndarray) -> list[tuple]:
    """Shape, size, colour, material, x and y of each object, in the order of the patches."""
    grey = picture[..., 0].astype(float) / 255
    patches = grey.reshape(ROW, PATCH, ROW, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)
    steps, found = np.linspace(-3, 3, 16), []
    for patch in patches:
        if patch[0].max() < 0.5:
            continue
        color = OBJECT_COLORS[patch[1].argmax()] if patch[1].max() > 0.5 else "gold"
        shares = np.where(patch > 0.07, patch, 0)  # what is less is noise of the video codec
        x, y = (rows.ravel() @ steps / rows.sum() for rows in (shares[3:5], shares[5:7]))
        shape, size = KINDS[patch[0, :5].argmax()], list(SIZES)[patch[0, 5:].argmax()]
        found.append((shape, size, color, MATERIALS[patch[2, :2].argmax()], x, y))
    return found


def test_a_picture_says_what_is_in_view():
    video, frames = draw_video(0, 3), frame_times(38)
    hidden = 0
    for frame, picture in zip(frames, draw_states(video, frames), strict=True):
        in_view = np.flatnonzero(~video.motion.covered[frame])
        hidden += len(video.things) - len(in_view)
        places = video.motion.locations[frame]
        expected = sorted(((*places[i, :2], video.things[i]) for i in in_view), key=lambda e: e[:2])
        found = read_states(picture)
        assert [f[:4] for f in found] == [
            (t.shape, t.size, t.color, t.material) for _, _, t in expected
        ]
        np.testing.assert_allclose([f[4:] for f in found], [e[:2] for e in expected], atol=0.04)
    assert hidden


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> Cater:
    spec = SyntheticCater(train=2, val=1, camera="none")
    return Cater(write_cater(tmp_path_factory.mktemp("states") / "cater", spec, 1))


def test_tables_have_no_places_for_detection(states):
    with pytest.raises(UserError, match=r"^--objective detection: expected .* static camera"):
        make_frame_labels(states, "detection", 4)
    labels = make_frame_labels(states, "cells", 4)
    assert len(labels(states.clips("train")[0], np.arange(38), 38)) == 38
