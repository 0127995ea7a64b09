"""The page of a run, ``report.html``: scores, curves, and a gallery of clips that play.

The page is one file. It loads nothing, so it opens from a disk and can be sent to others. Letters
in shapes as in ``reference.py``; M is a number of images.
"""

from __future__ import annotations

import base64
import io
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image
from torch import Tensor

import ivcl_fast
from ivcl_fast.analysis.attention_maps import slot_attention
from ivcl_fast.analysis.clips import ClipReader, DecodedClip
from ivcl_fast.analysis.finished_runs import FinishedRun, Model
from ivcl_fast.analysis.trajectory import SnitchTrajectory, follow_snitch
from ivcl_fast.config import IVCLConfig
from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.formats.cater_labels import hidden_at_end
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import Evaluation, Result
from ivcl_fast.files import write_text
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, SlotAutoencoder
from ivcl_fast.report.figures import colored
from ivcl_fast.report.pictures import PANELS, attention_heat, measure_name, reconstruction
from ivcl_fast.report.tables import METRIC_NAMES
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.settings import TrainConfig, load_settings

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
CLIPS, SECONDS, MOST_BYTES = 24, 20.0, 7_000_000
"""The gallery ends after this many clips, seconds after the first one, or bytes."""
SIDE, COLUMNS = 128, 16
"""Most pixels along a side of a frame, and frames side by side in a sheet."""
POINTS = 400
"""Most points of a curve."""
LIKELIEST = 6
"""Classes whose probabilities are shown."""
NOT_SHOWN = {"out", "name", "resume", "overwrite", "data_dir", "preset"}
"""Settings that say where a run is, or that the page names elsewhere."""


def write_page(
    path: Path,
    run: FinishedRun,
    results: Sequence[Result],
    clips: Iterable[dict[str, Any]],
    data: str | None = None,
) -> None:
    """Write the page of a run; ``clips``: as of :func:`describe_clip`.

    ``data``: what the clips are, in words; by default the name of the run's data. If no clip can be
    decoded, the page says why in place of its gallery.
    """
    shown, note, size, start = list[dict[str, Any]](), "", 0, 0.0
    try:
        for clip in clips:
            shown.append(clip)
            start = start or time.monotonic()
            size += sum(len(sheet["src"]) for sheet in clip["sheets"].values())
            if size > MOST_BYTES or time.monotonic() - start > SECONDS:
                break
    except UserError as error:
        note = str(error)
    chance = {}
    if results:
        chance = {f"val_{name}": s.chance for name, s in results[0].scores["all"].items()}
    curves = describe_curves(MetricsLog(run.folder).read(), chance) if not run.model_folder else []
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    text = environment.get_template("report.html").render(
        title=run.folder.name,
        about=f"{run.config.data.task} on {data or run.config.data.source}, preset "
        f"{run.config.preset}, seed {run.config.seed}; {run.describe_length()}.",
        quick=run.config.quick,
        style=Markup((TEMPLATES / "report.css").read_text()),
        script=Markup((TEMPLATES / "report.js").read_text()),
        table=describe_results(results),
        settings=changed_settings(run),
        versions={
            "ivcl_fast": ivcl_fast.__version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "device": f"{run.device}, {platform.machine()}",
        },
        command=command_line(),
        note=note,
        data=finite({"curves": curves, "clips": shown}),
        clips=shown,
        curves=curves,
        groups=any(clip["hidden"] is not None for clip in shown),
        judged=any(clip["right"] is not None for clip in shown),
    )
    write_text(path, text)


# --- Numbers and settings ------------------------------------------------------------------------


def describe_results(results: Sequence[Result]) -> dict[str, Any] | None:
    """Return the header and rows of the table of results, None without results."""
    if not results:
        return None
    metrics = list(results[0].scores["all"])
    rows = []
    for result in results:
        for group, scores in result.scores.items():
            cells = [describe_score(scores[name]) if name in scores else None for name in metrics]
            n = next(iter(scores.values())).n
            rows.append({"title": result.title, "group": group, "n": n, "scores": cells})
    chance = [
        {"value": score.chance, "text": score.format(score.chance), "interval": ""}
        for score in results[0].scores["all"].values()
    ]
    rows.append({"title": "chance", "group": "all", "n": "", "scores": chance})
    return {"header": [METRIC_NAMES[name] for name in metrics], "rows": rows}


def describe_score(score: Any) -> dict[str, Any]:
    """Return a score's value for sorting, and its texts."""
    interval = f"{score.format(score.low)} to {score.format(score.high)}"
    return {
        "value": score.value,
        "text": score.format(score.value),
        "interval": interval,
        "hint": f"95 % interval {interval}; n = {score.n}; chance {score.format(score.chance)}",
    }


def describe_curves(
    records: Sequence[Mapping[str, Any]], chance: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the curves of ``metrics.jsonl``, a panel for each value, a line for each stage."""
    panels = []
    for name, title in PANELS.items():
        lines: dict[str, list[list[float]]] = {}
        for record in records:
            if name in record:
                points = lines.setdefault(record["stage"], [])
                points.append([record["clips"], record[name]])
        thinned = {stage: points[:: -(-len(points) // POINTS)] for stage, points in lines.items()}
        if lines:
            panels.append({"title": title, "chance": chance.get(name), "lines": thinned})
    return panels


def changed_settings(run: FinishedRun) -> dict[str, str]:
    """Return the run's settings that differ from the defaults of its preset.

    Of a model without its run only the sizes and choices of the model are known.
    """
    default = TrainConfig(model=IVCLConfig.preset(run.config.preset)).flat()
    kept = vars(run.config.model) if run.model_folder else load_settings(run.folder).flat()
    return {
        name: str(value)
        for name, value in kept.items()
        if value != default[name] and name not in NOT_SHOWN
    }


def command_line() -> str:
    """Return the command that this process runs."""
    program, *arguments = sys.argv
    return shlex.join(["python", "-m", f"ivcl_fast.{Path(program).stem}", *arguments])


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by None, in lists and dicts too."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Clips ---------------------------------------------------------------------------------------


def evaluated_clips(
    run: FinishedRun, models: Mapping[str, Model], evaluation: Evaluation | None
) -> Iterator[dict[str, Any]]:
    """Describe clips of an evaluation: right and wrong, visible and hidden ones in turn.

    ``models``: as of :meth:`FinishedRun.models`. Without an evaluation, clips of the evaluation
    split are shown without answers.
    """
    model = models.get("finetuned") or next(iter(models.values()))
    reader = ClipReader(run, trajectories=run.localizes, num_frames=model.cfg.num_frames)
    if evaluation is None:
        for clip in reader.mixed(CLIPS):
            yield describe_clip(run, models, clip)
        return
    logits = dict(zip(evaluation.names, evaluation.logits, strict=True))
    for clip in reader.mixed(CLIPS, varied(evaluation)):
        yield describe_clip(run, models, clip, run.probabilities(logits[clip.name]))


def varied(evaluation: Evaluation) -> list[Clip]:
    """Return the evaluation's clips: right and wrong, visible and hidden ones in turn."""
    groups: dict[tuple[bool, str], list[Clip]] = {}
    for clip, one in zip(evaluation.clips, evaluation.by_clip(), strict=True):
        kind = one.get("answer") == one["label"], one.get("group", "")
        groups.setdefault(kind, []).append(clip)
    return [clip for row in zip_longest(*groups.values()) for clip in row if clip is not None]


@torch.inference_mode()
def describe_clip(
    run: FinishedRun,
    models: Mapping[str, Model],
    clip: DecodedClip,
    probabilities: Tensor | None = None,
) -> dict[str, Any]:
    """Return all that the page shows about a clip, ready for JSON.

    ``probabilities``: ``[C]``, of the classes; where trajectories are to be shown, the clip's
    reader must have decoded what they need.
    """
    sheets, layers = describe_layers(run, models, clip)
    found: dict[str, Any] = {
        "name": clip.name, "titles": clip.titles, "truth": clip.truth, "answer": None,
        "right": None, "confidence": None, "probabilities": [], "floor": None,
        "hidden": None if clip.scene is None else hidden_at_end(clip.scene),
        "sheets": sheets, "layers": layers,
    }  # fmt: skip
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
            found["right"] = names[order[0]] in clip.labels
    classifier = models.get("finetuned")
    if run.localizes and isinstance(classifier, IVCLClassifier):
        followed = follow_snitch(classifier, clip.take, clip.frame_index, clip.aligned_scene)
        found["floor"] = describe_floor(followed)
    return found


def describe_floor(followed: SnitchTrajectory) -> dict[str, Any]:
    """Return the belief about CATER's floor after each frame, and the true path where known."""
    belief = [[round(p, 3) for p in row] for row in followed.probabilities.tolist()]
    known = {"true": followed.cells, "hidden": followed.hidden}
    return {"n": followed.grid, "belief": belief} | {
        name: None if values is None else values.tolist() for name, values in known.items()
    }


def describe_layers(
    run: FinishedRun, models: Mapping[str, Model], clip: DecodedClip
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the sheets of a clip, and the layers that can be shown.

    A layer has a tile of a sheet for each frame, or None where there is nothing to show. ``over``:
    it is drawn over the gray frame.
    """
    frames, count = clip.frames / 255, len(clip.frame_index)
    sheets = {"frames": sheet(frames)}
    layers: list[dict[str, Any]] = []

    def add(name: str, note: str, of: str, tiles: Sequence[int | None], over: bool = False) -> None:
        layers.append({"name": name, "note": note, "sheet": of, "tiles": tiles, "over": over})

    add("input", "The frames that the model is given.", "frames", range_of(count))
    seeing = models.get("finetuned") or next(iter(models.values()))
    heat = attention_heat(slot_attention(seeing, clip.frames[None])[0].cpu())  # [T, S, g, g]
    heat = heat.transpose(0, 1).flatten(0, 1)
    overlay = torch.cat([colored(heat, "inferno"), (0.2 + 0.5 * heat)[:, None]], dim=1)
    sheets["attention"] = sheet(overlay, lossless=True)
    for slot in range(len(heat) // count):
        note = f"Attention: {measure_name(run)}."
        add(f"slot {slot + 1}", note, "attention", range_of(count, slot * count), over=True)
    pretrained = models.get("pretrained")
    if isinstance(pretrained, SlotAutoencoder):
        rebuilt, shares = (x[0] for x in pretrained.draw(clip.frames[None]))
        error = (rebuilt - frames).abs().mean(dim=1)
        top = max(float(error.max()), 0.01)
        sheets["pretrained"] = sheet(torch.cat([rebuilt.cpu(), colored(error / top, "magma")]))
        sheets["segments"] = sheet(segment_overlay(shares.argmax(dim=1).cpu()), lossless=True)
        note = "The pixels of each slot, by the pretrained model's decoder."
        add("segments", note, "segments", range_of(count), over=True)
        add("reconstruction", "Frames decoded from their slots.", "pretrained", range_of(count))
        note = f"Absolute error, 0 to {top:.2f}."
        add("error", note, "pretrained", range_of(count, count))
    elif isinstance(pretrained, IVCL):
        seed = run.config.seed
        at, rows = reconstruction(pretrained, clip.frames[None], seed, columns=count)
        pictures = dict(islice(rows.items(), 1, None))  # without the input
        sheets["pretrained"] = sheet(torch.cat([images.cpu() for images in pictures.values()]))
        place = {frame: tile for tile, frame in enumerate(at[0].tolist())}
        for row, label in enumerate(pictures):
            first = row * len(place)
            tiles = [first + place[t] if t in place else None for t in range(count)]
            note = label.replace("\n", " ")
            add(note.split(",")[0], f"Query frames: {note}.", "pretrained", tiles)
    return sheets, layers


def range_of(count: int, first: int = 0) -> list[int]:
    """Return ``count`` numbers from ``first`` on."""
    return list(range(first, first + count))


def segment_overlay(segments: Tensor) -> Tensor:
    """Return colours with opacity of numbered segments, ``[M, H, W]`` to ``[M, 4, H, W]``.

    Outlines are opaque, and the last segment, the background, is clear.
    """
    outline = torch.zeros_like(segments, dtype=torch.bool)
    outline[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    outline[:, :, 1:] |= segments[:, :, 1:] != segments[:, :, :-1]
    alpha = torch.where(outline, 1.0, torch.where(segments == segments.max(), 0.0, 0.5))
    return torch.cat([colored((segments % 10 + 0.5) / 10, "tab10"), alpha[:, None]], dim=1)


def sheet(images: Tensor, lossless: bool = False) -> dict[str, Any]:
    """Put images ``[M, 3 or 4, H, H]`` in [0, 1] on one WebP picture, left to right, then down."""
    side = min(images.shape[-1], SIDE)
    if images.shape[-1] > side:
        images = F.interpolate(images.float(), side, mode="area")
    columns = min(len(images), COLUMNS)
    images = torch.cat([images, images.new_zeros(-len(images) % columns, *images.shape[1:])])
    pixels = rearrange(images.cpu(), "(r c) d h w -> (r h) (c w) d", c=columns)
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().byte().numpy()).save(
        file, "WEBP", lossless=lossless, quality=88
    )
    source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"src": source, "side": side, "columns": columns}
