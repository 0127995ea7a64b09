"""Chooses what draws the pictures of a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ivcl_fast.data.synthetic.render import Rendering, render

Renderer = Literal["fast", "blender"]


def choose_renderer(renderer: Renderer, samples: int) -> Callable[..., Rendering]:
    """Return :func:`~ivcl_fast.data.synthetic.render.render`, or what does the same by Blender.

    Blender's process is started here, and serves all later calls with as many ``samples`` per
    pixel. Raises :class:`~ivcl_fast.errors.UserError` if Blender is not installed.
    """
    if renderer == "fast":
        return render
    from ivcl_fast.data.synthetic.blender.process import own_blender

    return own_blender(samples).render
