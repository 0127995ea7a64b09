"""The C++ op that renders synthetic scenes; ``ivcl_fast.data.synthetic.ray_casting`` has the maths.

It runs only on CPUs and has no gradients, so it is registered without the rules of model ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ext
from ._op import LIBRARY

_NAME = "render_scene"

LIBRARY.define(
    f"{_NAME}(Tensor kinds, Tensor sizes, Tensor colors, Tensor poses, Tensor cameras, "
    "Tensor lamps, Tensor profile, Tensor look, int ground, int width, int height, "
    "bool with_picture, bool with_segments) -> (Tensor, Tensor, Tensor)"
)


def available() -> bool:
    """Whether the loaded object has the op."""
    return _NAME in _ext.OPS


def missing() -> str:
    """Return why the op is missing, and how to build it."""
    return _ext.MISSING or "the loaded object is an older one; build it again: make build"


def render_scene(
    kinds: Tensor,
    sizes: Tensor,
    colors: Tensor,
    poses: Tensor,
    cameras: Tensor,
    lamps: Tensor,
    profile: Tensor,
    look: Tensor,
    ground: int,
    width: int,
    height: int,
    with_picture: bool,
    with_segments: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render F frames of n things: uint8 [F, h, w, 3], int16 [F, h, w] and float32 [F, h, w].

    ``kinds`` int64 [n, 2]: shape and whether metal; ``sizes`` [n, 2]: radius and half-height. For
    the others see :class:`ivcl_fast.data.synthetic.ray_casting.Numbers`. Outputs that are
    not requested have no frames.
    """
    tensors = kinds, sizes, colors, poses, cameras, lamps, profile, look
    options = ground, width, height, with_picture, with_segments
    return torch.ops.ivcl_fast.render_scene(*tensors, *options)
