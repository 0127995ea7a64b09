"""Content of a clip on a page: layers of pictures, the answer, and the belief over time.

Letters in shapes as in ``reference.py``; M is a number of images.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ivcl_fast.analysis.attention_maps import slot_attention, snitch_attention
from ivcl_fast.analysis.clips import ClipReader, DecodedClip, SnitchTrajectory, follow_snitch
from ivcl_fast.analysis.finished_runs import FinishedRun, Model
from ivcl_fast.data.dataset import Clip
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.evaluation.tracker import hidden_end
from ivcl_fast.models import reference
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, SlotAutoencoder

CLIPS = 24
"""Largest number of clips in the gallery of a run."""
SIDE, COLUMNS = 128, 16
"""Largest width of a frame in pixels, and number of frames side by side in a sheet."""
LIKELIEST = 6
"""Classes whose probabilities are shown."""
MASKED_GRAY = 0.12
"""Colour of a masked patch: darker than any floor."""
INFERNO = ((0, 0, 4), (31, 12, 72), (87, 16, 110), (136, 34, 106), (188, 55, 84), (227, 89, 51),
           (249, 142, 9), (249, 201, 50), (252, 255, 164))  # fmt: skip
"""Colours of values from 0 to 1, evenly spaced."""
SLOT_COLORS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
               (140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207))  # fmt: skip
"""Colours of the segments of slots 1, 2, ...; they repeat."""


@dataclass(frozen=True)
class Layer:
    """Pictures of a clip's frames, such as the attention of a slot."""

    name: str
    note: str
    images: Tensor
    """float32 ``[M, 3, H, H]`` in [0, 1]; with opacity, ``[M, 4, H, H]``, to lay over gray
    frames."""
    tiles: list[int | None]
    """The image of each frame, None where there is none."""
    legend: tuple[tuple[str, str], ...] = ()
    """Names and colours."""

    def over(self, frames: Tensor) -> Tensor:
        """Return the pictures of all frames: ``[T, 3, H, W]`` in [0, 1], like ``frames``."""
        images = F.interpolate(self.images, frames.shape[-2:])
        dark = 0.3 * frames
        if images.shape[1] == 4:
            gray = frames.mean(dim=1, keepdim=True)
            images = images[:, :3] * images[:, 3:] + gray * (1 - images[:, 3:])
        return torch.stack(
            [dark[t] if at is None else images[at] for t, at in enumerate(self.tiles)]
        )


# --- Which clips ---------------------------------------------------------------------------------


def evaluated_clips(
    run: FinishedRun,
    models: Mapping[str, Model],
    evaluation: Evaluation | None,
    count: int = CLIPS,
) -> Iterator[tuple[DecodedClip, Tensor | None]]:
    """Read clips of an evaluation, with the probabilities of their classes.

    Clips with right and wrong answers, and with visible and hidden snitches, alternate; for ACRE,
    the four questions of a problem stay together. Without an evaluation, the clips are those of the
    evaluation split, without probabilities.
    """
    model = models.get("finetuned") or next(iter(models.values()))
    reader = ClipReader(run, trajectories=run.localizes, num_frames=model.cfg.num_frames)
    if evaluation is None:
        yield from ((clip, None) for clip in reader.mixed(count))
        return
    logits = dict(zip(evaluation.names, evaluation.logits, strict=True))
    chosen = evaluation.clips if reader.panels else varied(evaluation)
    for clip in reader.mixed(count, chosen):
        yield clip, run.probabilities(logits[clip.name])


def varied(evaluation: Evaluation) -> list[Clip]:
    """Return an evaluation's clips, alternating between right and wrong, visible and hidden."""
    groups: dict[tuple[bool, str], list[Clip]] = {}
    for clip, one in zip(evaluation.clips, evaluation.by_clip(), strict=True):
        kind = one.get("answer") == one["label"], one.get("group", "")
        groups.setdefault(kind, []).append(clip)
    return [clip for row in zip_longest(*groups.values()) for clip in row if clip is not None]


# --- What the page shows -------------------------------------------------------------------------


@torch.inference_mode()
def describe_clip(
    run: FinishedRun,
    models: Mapping[str, Model],
    clip: DecodedClip,
    probabilities: Tensor | None = None,
) -> dict[str, Any]:
    """Return everything that the page shows about a clip, as JSON values.

    ``probabilities``: ``[C]``, of the classes; by default those of the finetuned model, if there is
    one. For a localisation run, the clip must have the frames for
    :func:`~ivcl_fast.analysis.clips.follow_snitch`.
    """
    found: dict[str, Any] = {
        "name": clip.name, "titles": clip.titles, "truth": "; ".join(clip.labels), "answer": None,
        "right": None, "confidence": None, "label": None, "guess": None, "probabilities": [],
        "floor": None, "end": end_of(clip), "problem": clip.video if clip.panels else None,
        "layers": [describe_layer(layer) for layer in layers_of(run, models, clip)],
    }  # fmt: skip
    classifier = models.get("finetuned")
    if isinstance(classifier, IVCLClassifier) and probabilities is None:
        probabilities = run.predict(classifier, clip.frames).cpu()
    if probabilities is not None and not run.predicts_classes:
        pairs = zip(run.classes.names, probabilities.tolist(), strict=True)
        found["answer"] = ", ".join(f"{name} {number:.2f}" for name, number in pairs)
    elif probabilities is not None:
        names, order = run.classes.names, probabilities.argsort(descending=True).tolist()
        likeliest = order[:LIKELIEST]
        likeliest += [i for i in order[LIKELIEST:] if names[i] in clip.labels]
        found["probabilities"] = [
            [names[i], round(float(probabilities[i]), 4), names[i] in clip.labels]
            for i in likeliest
        ]
        found["answer"], found["confidence"] = names[order[0]], found["probabilities"][0][1]
        if clip.labels and run.classes.target == "class":
            found["label"], found["guess"] = names.index(clip.labels[0]), order[0]
            found["right"] = names[order[0]] in clip.labels
    if followed := follow(run, models, clip):
        belief = [[round(p, 3) if p == p else 0.0 for p in row] for row in followed.belief]
        found["floor"] = followed._replace(belief=belief)._asdict() | {
            "counts": followed.right_frames()
        }
    return found


def end_of(clip: DecodedClip) -> str | None:
    """Return the state of the snitch at the end, if known."""
    if clip.scene is None:
        return None
    end = hidden_end(clip.scene)
    return "visible" if end is None else "moved while hidden" if end.carried else "hidden"


def follow(
    run: FinishedRun, models: Mapping[str, Model], clip: DecodedClip
) -> SnitchTrajectory | None:
    """Return the belief about the snitch's place after each frame, if the model has one."""
    classifier = models.get("finetuned")
    if not run.localizes or not isinstance(classifier, IVCLClassifier):
        return None
    return follow_snitch(classifier, clip.take, clip.frame_index, clip.aligned_scene)


def describe_layer(layer: Layer) -> dict[str, Any]:
    """Return a layer with its images on one WebP picture, left to right, then down."""
    images = layer.images
    side = min(images.shape[-1], SIDE)
    if images.shape[-1] > side:
        images = F.interpolate(images, side, mode="area")
    columns = min(len(images), COLUMNS)
    images = torch.cat([images, images.new_zeros(-len(images) % columns, *images.shape[1:])])
    pixels = rearrange(images, "(r c) d h w -> (r h) (c w) d", c=columns)
    file, over = io.BytesIO(), images.shape[1] == 4
    as_picture(pixels).save(file, "WEBP", lossless=over, quality=88)
    source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    about = {"name": layer.name, "note": layer.note, "tiles": layer.tiles, "legend": layer.legend}
    return about | {"over": over, "src": source, "side": side, "columns": columns}


def as_picture(pixels: Tensor) -> Image.Image:
    """Return a picture of ``[H, W, 3 or 4]`` in [0, 1]."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().numpy())


# --- Layers --------------------------------------------------------------------------------------


@torch.inference_mode()
def layers_of(run: FinishedRun, models: Mapping[str, Model], clip: DecodedClip) -> list[Layer]:
    """Return the layers of a clip: its frames, the attention of each slot, and the pretrained
    model's reconstruction."""
    frames, every = clip.frames.cpu() / 255, [*range(len(clip.frame_index))]
    layers = [Layer("input", "The model's input frames.", frames, every)]
    seeing = models.get("finetuned") or next(iter(models.values()))
    maps = slot_attention(seeing, clip.frames[None])[0].cpu()  # [T, S, N]
    of = "last block of the image encoder, mean of the heads"
    if seeing.cfg.objective == "slot_attention":
        of = "last round of slot attention"
    for slot, heat in enumerate(attention_heat(maps).unbind(1), 1):
        note = f"Where this slot attends: {of}. Brightness is the square root of attention."
        if any(patch is not None for patch in clip.snitch):
            times = snitch_attention(maps[:, slot - 1], clip.snitch)
            note += f" On the visible snitch, attention is {times:.1f} times the slot's mean."
        images = torch.cat([colored(heat), (0.2 + 0.5 * heat)[:, None]], dim=1)
        layers.append(Layer(f"slot {slot}", note, images, every))
    pretrained = models.get("pretrained")
    if isinstance(pretrained, SlotAutoencoder):
        rebuilt, segments = (x.cpu() for x in decoded_slots(pretrained, clip))
        error = (rebuilt - frames).abs().mean(dim=1)
        top = max(float(error.max()), 0.01)
        note = "The pixels that the pretrained model's decoder takes from each slot."
        slots = range(1, 1 + maps.shape[1])
        legend = tuple((f"slot {n}", f"#{bytes(slot_color(n)).hex()}") for n in slots)
        layers += [
            Layer("segments", note, segment_overlay(segments), every, legend),
            Layer("reconstruction", "Frames decoded from their slots.", rebuilt, every),
            Layer("error", f"Absolute error, 0 to {top:.2f}.", colored(error / top), every),
        ]
    elif isinstance(pretrained, IVCL):
        query, pictures = reconstruction(pretrained, clip.frames[None], run.config.seed)
        at = {frame: tile for tile, frame in enumerate(query.tolist())}
        tiles = [at.get(t) for t in every]
        layers += [Layer(name, note, images.cpu(), tiles) for name, note, images in pictures]
    return layers


def attention_heat(maps: Tensor) -> Tensor:
    """Scale attention ``[T, S, N]`` to [0, 1] for display: ``[T, S, g, g]`` on the grid of patches.

    It is the square root of attention, up to the 99th percentile of each slot in the clip.
    """
    top = maps.transpose(0, 1).flatten(1).quantile(0.99, dim=1).clamp_min(1e-12)  # [S]
    heat = (maps / top[:, None]).clamp(max=1).sqrt()
    grid = round(maps.shape[-1] ** 0.5)
    return heat.unflatten(-1, (grid, grid))


def reconstruction(
    model: reference.IVCL, video: Tensor, seed: int = 0
) -> tuple[Tensor, list[tuple[str, str, Tensor]]]:
    """Return a clip's query frames, int64 ``[Q]``, and for each layer a name, a note and images.

    The layers are the masked input, the reconstruction and its absolute error, averaged over
    colours. ``video``: uint8 ``[1, T, 3, H, W]`` on the model's device. The masks depend only on
    ``seed``, so that clips of a run are comparable.
    """
    cfg = model.cfg
    out = model(video, seed=reference.stream(torch.tensor(seed, device=video.device), 1))
    query = out.query[0]
    frames, ids_mask = video[0, query] / 255, out.ids_mask[0, query]  # [Q, N - K]
    masked = torch.zeros(len(query), cfg.num_patches, dtype=torch.bool, device=video.device)
    masked = masked.scatter(1, ids_mask, True).unflatten(1, (cfg.grid, cfg.grid))
    for axis in (1, 2):  # to pixels, [Q, H, W]
        masked = masked.repeat_interleave(cfg.patch_size, dim=axis)
    rebuilt = model.reconstruct(video, out)[0]
    error = (rebuilt - frames).abs().mean(dim=1)
    top, mean = float(error.max()), float(error[masked].mean())
    given = frames.masked_fill(masked.unsqueeze(1), MASKED_GRAY)
    note = "Query frames as the pretrained model reconstructs them."
    if cfg.norm_pix:
        note += " Masked patches have the true patch's mean and contrast (norm_pix)."
    return query, [
        ("masked input", "Query frames without their masked patches.", given),
        ("reconstruction", note, rebuilt),
        ("error", f"Absolute error, 0 to {top:.2f}; mean of masked pixels {mean:.3f}.",
         colored(error.cpu() / max(top, 0.01))),
    ]  # fmt: skip


def decoded_slots(model: SlotAutoencoder, clip: DecodedClip) -> tuple[Tensor, Tensor]:
    """Return frames decoded from slots, ``[T, 3, H, W]`` in [0, 1], and the segments of the slots.

    Segments: int64 ``[T, H, W]``, the number of each pixel's slot, from 1, or 0 for the background.
    """
    rebuilt, shares = (x[0] for x in model.draw(clip.frames[None]))  # shares: [T, S + 1, H, W]
    return rebuilt, (shares.argmax(dim=1) + 1) % shares.shape[1]


def slot_color(number: int) -> tuple[int, int, int]:
    """Return the colour of a slot's segments; slots are numbered from 1."""
    return SLOT_COLORS[(number - 1) % len(SLOT_COLORS)]


def segment_overlay(segments: Tensor) -> Tensor:
    """Return an RGBA overlay ``[M, 4, H, W]`` for segments ``[M, H, W]``.

    Outlines are opaque; the background is transparent.
    """
    outline = torch.zeros_like(segments, dtype=torch.bool)
    outline[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    outline[:, :, 1:] |= segments[:, :, 1:] != segments[:, :, :-1]
    alpha = torch.where(outline, 1.0, torch.where(segments == 0, 0.0, 0.5))
    colors = torch.tensor([(0, 0, 0), *map(slot_color, range(1, int(segments.max()) + 1))]) / 255
    return torch.cat([colors[segments].movedim(-1, 1), alpha[:, None]], dim=1)


def colored(values: Tensor) -> Tensor:
    """Colour ``[..., H, W]`` in [0, 1], dark to bright: ``[..., 3, H, W]``."""
    colors = torch.tensor(INFERNO) / 255
    at = values.nan_to_num().clamp(0, 1) * (len(colors) - 1)
    low = at.floor().long().clamp(max=len(colors) - 2)
    return torch.lerp(colors[low], colors[low + 1], (at - low)[..., None]).movedim(-1, -3)
