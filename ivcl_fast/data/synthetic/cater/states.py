"""Renders a video as tables of object states: CATER with perfect perception.

Each of the 4 x 4 patches of 8 x 8 pixels encodes the state of one visible object: its attributes
and its position on the floor. Patches are sorted by position, so the number of a patch does not
identify its object.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ivcl_fast.data.synthetic.cater.video import OBJECT_COLORS, Video
from ivcl_fast.data.synthetic.scene import MATERIALS, SHAPES, SIZES, Thing

PATCH, ROW = 8, 4
_KINDS = (*SHAPES, "spl")
_STEPS = np.linspace(-3, 3, 2 * PATCH)
"""Coordinates that a single pixel encodes; two neighbouring pixels encode values between them."""


def draw_states(video: Video, frames: np.ndarray) -> Iterator[np.ndarray]:
    """Render the given frames of CATER's timeline: uint8 RGB ``[32, 32, 3]`` each, in grey.

    A patch has, from the top, a row with shape and size, a row with the colour, a row with the
    material and the height above the floor, two rows with x and two with y.
    """
    looks = np.stack([_looks(thing) for thing in video.things])
    for frame in frames:
        visible = np.flatnonzero(~video.motion.covered[frame])
        places = video.motion.locations[frame, visible]
        picture = np.zeros((ROW * ROW, PATCH, PATCH))
        for patch, i in enumerate(np.lexsort((places[:, 1], places[:, 0]))):
            picture[patch] = looks[visible[i]]
            picture[patch, 2, 4:] = places[i, 2] / 4
            picture[patch, 3:7] = _between(places[i, :2]).reshape(4, PATCH)
        rows = picture.reshape(ROW, ROW, PATCH, PATCH).swapaxes(1, 2).reshape(ROW * PATCH, -1)
        yield np.repeat(np.rint(255 * rows.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2)


def _looks(thing: Thing) -> np.ndarray:
    """Return the constant rows of an object's patch, 0 to 1."""
    patch = np.zeros((PATCH, PATCH))
    patch[0, _KINDS.index(thing.shape)] = 1
    patch[0, 5 + list(SIZES).index(thing.size)] = 1
    if thing.color in OBJECT_COLORS:  # the snitch's gold is not one of them
        patch[1, OBJECT_COLORS.index(thing.color)] = 1
    patch[2, MATERIALS.index(thing.material)] = 1
    return patch


def _between(places: np.ndarray) -> np.ndarray:
    """Encode coordinates ``[...]`` by how near each is to the steps: ``[..., 16]``, 0 to 1."""
    width = _STEPS[1] - _STEPS[0]
    return (1 - np.abs(places[..., None].clip(-3, 3) - _STEPS) / width).clip(0)
