"""Layers of a clip side by side as PNG, GIF or MP4, and segments of slots as mask files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ivcl_fast.analysis.clips import DecodedClip, SnitchTrajectory
from ivcl_fast.analysis.finished_runs import FinishedRun, Model
from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.files import atomic_write, write_text
from ivcl_fast.models.ivcl import SlotAutoencoder
from ivcl_fast.report.clips import (
    as_picture,
    decoded_slots,
    evaluated_clips,
    follow,
    layers_of,
    slot_color,
)

Format = Literal["png", "gif", "mp4"]
PER_SECOND = 2
"""Frames per second of an animation: slow enough to look at every slot."""
FILMS = 2
"""Clips of a run that TensorBoard or Weights & Biases shows."""
PANEL, TITLE = 160, 18
"""Pixels along a side of a panel, and of the line above it."""
ROWS = 8
"""Maximum number of frames stacked in a PNG file."""
FLOOR_MARGIN = 12
"""Pixels around the floor, for the numbers of its columns and rows."""
GRAY, GREEN, RED = (190, 190, 190), (26, 127, 55), (198, 40, 40)
TEXT = (110, 110, 110)


def film(run: FinishedRun, models: Mapping[str, Model], clip: DecodedClip) -> list[Image.Image]:
    """Draw each frame of a clip: its layers side by side and, for localisation, the belief on the
    floor."""
    frames = clip.frames.cpu() / 255
    panels = {layer.name: layer.over(frames) for layer in layers_of(run, models, clip)}
    followed = follow(run, models, clip)
    pictures = []
    for at, title in enumerate(clip.titles):
        columns = len(panels) + (followed is not None)
        picture = Image.new("RGB", (columns * PANEL, PANEL + 2 * TITLE), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((4, 3), title, "black")
        for column, (name, images) in enumerate(panels.items()):
            draw.text((column * PANEL + 4, TITLE + 3), name, "black")
            tile = as_picture(images[at].movedim(0, -1)).resize(
                (PANEL, PANEL), Image.Resampling.NEAREST
            )
            picture.paste(tile, (column * PANEL, 2 * TITLE))
        if followed is not None:
            left = len(panels) * PANEL
            is_hidden = followed.hidden is not None and followed.hidden[at]
            title = "belief (hidden)" if is_hidden else "belief"
            draw.text((left + 4, TITLE + 3), title, "black")
            picture.paste(floor(followed, at), (left, 2 * TITLE))
        pictures.append(picture)
    return pictures


def films(run: FinishedRun, evaluation: Evaluation | None) -> dict[str, bytes]:
    """Return GIF files of a visible and a hidden, or a right and a wrong clip, by name.

    Empty if no clip can be decoded; the run's page has the reason.
    """
    models = run.models()
    try:
        chosen = evaluated_clips(run, models, evaluation, FILMS)
        return {clip.name: as_gif(film(run, models, clip)) for clip, _ in chosen}
    except UserError:
        return {}


def floor(followed: SnitchTrajectory, at: int) -> Image.Image:
    """Draw CATER's floor from above, turned as its camera sees it from its starting pose.

    Bluer cells are likelier; a red cross marks the likeliest, a green outline the true one. Columns
    are numbered along the left edge, rows along the right one.
    """
    n, scale = followed.n, 3  # drawn larger, for smooth lines
    picture = Image.new("RGB", (scale * PANEL,) * 2, "white")
    draw = ImageDraw.Draw(picture)
    side = scale * (PANEL - 2 * FLOOR_MARGIN)
    unit = side / (n * 2**0.5)

    def point(column: float, row: float) -> tuple[float, float]:
        left = scale * FLOOR_MARGIN + (column + row) * unit / 2**0.5
        return left, scale * FLOOR_MARGIN / 2 + side / 2 + (column - row) * unit / 2**0.5

    def square(cell: int, inset: float) -> list[tuple[float, float]]:
        row, column = divmod(cell, n)
        ends = inset, 1 - inset
        corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
        return [point(column + ends[x], row + ends[y]) for x, y in corners]

    belief = followed.belief[at]
    for cell, share in enumerate(belief):
        blue = tuple(round(255 - share / max(belief) * (255 - c)) for c in (9, 105, 218))
        draw.polygon(square(cell, 0), fill=blue, outline=GRAY, width=scale)
    if followed.true is not None:
        draw.polygon(square(followed.true[at], 0.06), outline=GREEN, width=3 * scale)
    a, b, c, d = square(belief.index(max(belief)), 0.25)
    draw.line([a, c], RED, 3 * scale)
    draw.line([b, d], RED, 3 * scale)
    picture = picture.resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for number in range(n):
        for place in (point(number + 0.5, -0.4), point(n + 0.4, number + 0.5)):
            x, y = (along / scale for along in place)
            draw.text((x, y), str(number), TEXT, anchor="mm")
    return picture


def write_film(pictures: list[Image.Image], path: Path) -> None:
    """Write pictures of equal size as an animation (.gif, .mp4), or some of them as one .png."""
    with atomic_write(path) as file:
        if path.suffix == ".mp4":
            width, height = (side // 2 * 2 for side in pictures[0].size)  # even, for the codec
            encode_video(
                file,
                (np.asarray(picture)[:height, :width] for picture in pictures),
                container="mp4",
                codec="h264",
                pixel_format="yuv420p",
                fps=PER_SECOND,
                options={},
            )
        else:
            file.write(as_gif(pictures) if path.suffix == ".gif" else as_png(pictures))


def as_png(pictures: list[Image.Image]) -> bytes:
    """Return evenly spaced pictures below each other, as a PNG file."""
    ids = torch.linspace(0, len(pictures) - 1, min(ROWS, len(pictures))).round().long().tolist()
    file, chosen = io.BytesIO(), np.concatenate([np.asarray(pictures[i]) for i in ids])
    Image.fromarray(chosen).save(file, "PNG")
    return file.getvalue()


def as_gif(pictures: list[Image.Image]) -> bytes:
    """Return a looping GIF file with a palette of 256 colours per frame."""
    # Maximum coverage keeps small bright spots; k-means then fits the other colours.
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    first, *rest = (one.quantize(256, method, kmeans=3, dither=dither) for one in pictures)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=1000 // PER_SECOND, loop=0)
    return file.getvalue()


# --- Masks ---------------------------------------------------------------------------------------


@torch.inference_mode()
def write_masks(models: Mapping[str, Model], clip: DecodedClip, folder: Path) -> None:
    """Write the segments of slots: ``folder/CLIP/00000.png`` and so on, and ``folder/CLIP.json``.

    The PNG files follow DAVIS: indexed, 0 for the background, k for slot k; they are numbered like
    the video's frames, from 0. The JSON file follows YouTube-VIS and COCO: an annotation for each
    slot, with a run-length encoding for each frame. Raises :class:`UserError` if the model was not
    pretrained with slot attention.
    """
    model = models.get("pretrained")
    if not isinstance(model, SlotAutoencoder):
        raise UserError(
            "--masks: expected a model pretrained with --objective slot_attention, got another"
        )
    segments = decoded_slots(model, clip)[1].byte().cpu()
    (folder / clip.name).mkdir(parents=True, exist_ok=True)
    slots = range(1, model.cfg.num_slots + 1)
    palette = [0, 0, 0, *(channel for slot in slots for channel in slot_color(slot))]
    names = [f"{clip.name}/{number:05d}.png" for number in clip.frame_index]
    for name, indices in zip(names, segments, strict=True):
        picture = Image.fromarray(indices.numpy())
        picture.putpalette(palette)
        picture.save(folder / name)
    height, width = segments.shape[1:]
    video = {"id": 1, "file_names": names, "height": height, "width": width, "length": len(names)}
    annotations = [
        {"id": slot, "video_id": 1, "category_id": slot, "iscrowd": 0,
         "segmentations": [as_rle(frame == slot) for frame in segments],
         "areas": (segments == slot).sum(dim=(1, 2)).tolist()}
        for slot in slots
    ]  # fmt: skip
    categories = [{"id": slot, "name": f"slot {slot}"} for slot in slots]
    found = {"videos": [video], "categories": categories, "annotations": annotations}
    write_text(folder / f"{clip.name}.json", json.dumps(found))


def as_rle(mask: Tensor) -> dict[str, list[int]]:
    """Return COCO's uncompressed run-length encoding of a mask, bool ``[H, W]``.

    Runs go down the columns and alternate between 0 and 1, beginning with 0.
    """
    flat = mask.T.flatten().numpy()
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return {"size": [*mask.shape], "counts": np.diff(ends, prepend=0).tolist()}
