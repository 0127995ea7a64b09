"""Choice of the renderer of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

from ivcl_fast.data.synthetic.render import Rendering, render
from ivcl_fast.kernels import render_scene as render_op

log = logging.getLogger(__name__)

Renderer = Literal["fast", "blender"]


@cache
def warn_if_slow() -> None:
    """Warn once if NumPy renders scenes because the C++ op is missing."""
    if not render_op.available():
        log.warning(
            "rendering with NumPy, about 150 times slower than in C++: %s", render_op.missing()
        )


def choose_renderer(renderer: Renderer, samples: int) -> Callable[..., Rendering]:
    """Return :func:`~ivcl_fast.data.synthetic.render.render`, or its equivalent in Blender.

    ``samples``: Blender's paths per pixel.
    """
    if renderer == "fast":
        return render
    from ivcl_fast.data.synthetic.blender import process

    return partial(process.render, samples=samples)
