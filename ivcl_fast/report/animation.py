"""Pictures one after the other: what each frame shows the slots, as GIF and MP4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ivcl_fast.analysis.trajectory import SnitchPath
from ivcl_fast.files import atomic_write
from ivcl_fast.report.attention import draw_attention, even_shares, top_of
from ivcl_fast.report.figures import as_image, new_figure, show
from ivcl_fast.report.floor import belief_legend

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

    Arguments as of :func:`~ivcl_fast.report.attention.attention_figure`; ``path`` has an answer
    for every frame. Yields uint8 RGB arrays of one even size.
    """
    shares = {name: even_shares(of_model) for name, of_model in maps.items()}
    top = top_of(shares)
    num_slots = next(iter(shares.values())).shape[1]
    floor = 1 if path else 0
    widths = [1.0] * (num_slots + 1) + [1.4] * floor
    figure = new_figure(1.7 * sum(widths) + 1.2, 1.75 * len(shares) + 1.0)
    grid = figure.add_gridspec(len(shares), len(widths), width_ratios=widths)
    first = figure.add_subplot(grid[:, 0])
    panels = {
        (name, slot): figure.add_subplot(grid[row, slot + 1])
        for row, name in enumerate(shares)
        for slot in range(num_slots)
    }
    last = figure.add_subplot(grid[:, -1]) if path else None
    heading = figure.suptitle("", fontsize=11)

    for at, title in enumerate(titles):
        heading.set_text(title)
        for axes in (first, *panels.values(), *([last] if last else [])):
            axes.clear()
        show(first, as_image(frames[at]), vmin=0, vmax=1)
        first.set_title("input", fontsize=9)
        for (name, slot), axes in panels.items():
            colors = draw_attention(axes, frames[at], shares[name][at, slot], top)
            axes.set_title(f"slot {slot + 1}, {name}", fontsize=9)
        if path is not None and last is not None:
            path.draw(last, at)
            hidden = " (hidden)" if path.is_hidden(at) else ""
            last.set_title(f"where is the snitch?{hidden}", fontsize=9)
        if at == 0:
            draw_keys(figure, colors, list(panels.values()), path)
        yield pixels(figure)
        figure.set_layout_engine("none")  # everything stays where the first picture put it


def draw_keys(figure: Figure, colors: Any, panels: list[Axes], path: SnitchPath | None) -> None:
    """What the colours of the ``panels`` mean, and the marks on the floor."""
    rows = panels[0].get_gridspec().nrows  # type: ignore[union-attr]
    figure.colorbar(colors, ax=panels, label="attention,\n1 = even share", aspect=10 * rows)
    if path is not None:
        handles = belief_legend(truth=path.cells is not None)
        figure.legend(
            handles=handles, loc="outside lower right", ncols=len(handles), fontsize=8,
            frameon=False,
        )  # fmt: skip


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
