"""Chooses what draws the pictures of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal

from ivcl_fast.data.synthetic.render import Rendering, render
from ivcl_fast.kernels import render_scene as render_op

log = logging.getLogger(__name__)

Renderer = Literal["fast", "blender"]


@cache
def warn_if_slow() -> None:
    """Warn once if scenes are drawn by NumPy, as the C++ op is not there."""
    if not render_op.available():
        log.warning(
            "rendering by NumPy, about 150 times slower than in C++: %s", render_op.missing()
        )


def choose_renderer(renderer: Renderer, samples: int) -> Callable[..., Rendering]:
    """Return :func:`~ivcl_fast.data.synthetic.render.render`, or what does the same by Blender.

    Blender's process is started here, and serves all later calls with as many ``samples`` per
    pixel. Raises :class:`~ivcl_fast.errors.UserError` if Blender is not installed.
    """
    if renderer == "fast":
        return render
    from ivcl_fast.data.synthetic.blender.process import own_blender

    return own_blender(samples).render
