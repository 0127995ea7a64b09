"""Pictures one after the other: what each frame shows the slots, as GIF and MP4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .attention_figures import draw_attention, even_shares, top_of
from .figures import as_image, new_figure, show
from .files import atomic_write
from .snitch_path import SnitchPath, belief_legend, draw_belief

PER_SECOND = 2
"""Frames shown per second: slowly enough to look at every slot."""
PALETTE_FRAMES = 8
"""Frames that a GIF's palette is made of, at most."""


def attention_frames(
    frames: Tensor,
    maps: Mapping[str, Tensor],
    titles: Sequence[str],
    path: SnitchPath | None = None,
) -> Iterator[np.ndarray]:
    """A picture per frame: the frame, the slots of each model and the floor with the answer.

    Arguments as of :func:`~ivcl_fast.attention_figures.attention_figure`; ``path`` has an answer
    for every frame. Yields uint8 RGB arrays of one even size.
    """
    shares = {name: even_shares(of_model) for name, of_model in maps.items()}
    top = top_of(shares)
    for at, title in enumerate(titles):
        now = {name: share[at] for name, share in shares.items()}
        yield pixels(attention_frame(frames[at], now, top, title, path, at))


def attention_frame(
    frame: Tensor,
    shares: Mapping[str, np.ndarray],
    top: float,
    title: str,
    path: SnitchPath | None,
    at: int,
) -> Figure:
    """One picture of :func:`attention_frames`; ``shares`` ``[S, grid, grid]`` by model."""
    num_slots = len(next(iter(shares.values())))
    rows, floor = len(shares), 1 if path else 0
    widths = [1.0] * (num_slots + 1) + [1.4] * floor
    figure = new_figure(1.7 * sum(widths) + 1.2, 1.75 * rows + 1.0)
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    input_axes = figure.add_subplot(grid[:, 0])
    show(input_axes, as_image(frame), vmin=0, vmax=1)
    input_axes.set_title("input", fontsize=9)
    panels = []
    for row, (name, of_model) in enumerate(shares.items()):
        for slot, share in enumerate(of_model):
            axes = figure.add_subplot(grid[row, slot + 1])
            colors = draw_attention(axes, frame, share, top)
            axes.set_title(f"slot {slot + 1}, {name}", fontsize=9)
            panels.append(axes)
    figure.colorbar(colors, ax=panels, label="attention,\n1 = even share", aspect=10 * rows)
    if path is not None:
        axes = figure.add_subplot(grid[:, -1])
        draw_belief(axes, path, at)
        hidden = path.hidden is not None and path.hidden[at]
        axes.set_title("where is the snitch?" + (" (hidden)" if hidden else ""), fontsize=9)
        handles = belief_legend(path)
        figure.legend(
            handles=handles, loc="outside lower right", ncols=len(handles), fontsize=8,
            frameon=False,
        )  # fmt: skip
    figure.suptitle(title, fontsize=11)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 RGB ``[H, W, 3]``, H and W even, as video wants them."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    height, width = (size // 2 * 2 for size in image.shape[:2])
    return image[:height, :width].copy()


def write_gif(images: Sequence[np.ndarray], path: Path) -> None:
    """An endless GIF; one palette for all frames, so that colours keep their meaning."""
    # Made of several frames, for the first may lack colours of later ones. Maximum coverage keeps
    # small bright spots, k-means then puts the rest where the pixels are.
    several = Image.fromarray(np.concatenate(images[:: -(-len(images) // PALETTE_FRAMES)]))
    palette = several.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    first, *others = (
        Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE)
        for image in images
    )
    with atomic_write(path) as file:
        first.save(
            file, "GIF", save_all=True, append_images=others, duration=1000 // PER_SECOND, loop=0
        )


def write_mp4(images: Sequence[np.ndarray], path: Path) -> None:
    """An MP4: H.264 where this FFmpeg has an encoder of it, which browsers play, else MPEG-4."""
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"crf": "18"} if codec == "libx264" else {"qscale": "2"}
    height, width, _ = images[0].shape
    with (
        atomic_write(path) as file,
        av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream: Any = container.add_stream(codec, rate=PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
