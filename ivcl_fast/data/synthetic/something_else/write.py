"""Writes a synthetic Something-Else in the published format: VP9 clips, splits and boxes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ivcl_fast.data.formats.something_else import VIDEOS
from ivcl_fast.data.synthetic.something_else.actions import (
    TEMPLATES,
    Layer,
    Noun,
    Template,
    choose_nouns,
    nouns_of_set,
    play,
)
from ivcl_fast.data.synthetic.something_else.render import Box, render
from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.data.synthetic.writer import SyntheticSpec, write_dataset
from ivcl_fast.files import atomic_write, write_text

_CLIP_BOXES = "boxes.part"
"""Folder with a file of boxes per clip; deleted when all clips are complete."""
_BOXES = "bounding_box_smthsmth_part{}.json"
_SECONDS = 2.0, 5.0
_ONE_OBJECT = "circle"
"""Training clips of the one-object split contain a thing of this shape, validation clips none."""


_FORMATS = {"embedded": (142, 80, 8), "full": (427, 240, 12)}
"""Width, height and frames per second."""


@dataclass(frozen=True)
class SyntheticSomethingElse(SyntheticSpec):
    """Describes a synthetic Something-Else.

    Raises :class:`~ivcl_fast.errors.UserError` for an invalid value.
    """

    train: int = 3600
    """Number of training clips of the compositional split (Something-Else has 54,919)."""
    val: int = 720
    """Number of its validation clips (Something-Else has 57,876)."""
    seed: int = 0
    """Random seed."""
    size: Literal["embedded", "full"] = "embedded"
    """``full``: the original 427 x 240 pixels at 12 fps, 24 to 60 frames; ``embedded``: the same
    clips at 142 x 80 pixels and 8 fps, 16 to 40 frames."""

    # Not settings: they are the same for all data sets of this kind.
    name = "synthetic-something-else-{size}-{train}-{val}"
    format_version = 2
    unit = "videos"
    folders = (VIDEOS, _CLIP_BOXES)
    index = "dataset_splits"

    @property
    def videos(self) -> int:
        """Number of all clips; the first ``train`` of them are the training clips."""
        return self.train + self.val

    def write_item(self, out: Path, media: bool, number: int) -> None:
        """Write a video, then its boxes."""
        (width, height, fps), clip = _FORMATS[self.size], _plan(self, number)
        layers = play(clip.template, clip.nouns, round(clip.seconds * fps), clip.rng)
        boxes: list[dict[str, Any]] = []

        def pictures() -> Iterator[np.ndarray]:
            for picture, visible in render(layers, width, height, clip.rng):
                labels = [_label(clip, layers[n], box) for n, box in visible.items()]
                boxes.append(_frame_boxes(clip, len(boxes) + 1, [x for x in labels if x]))
                yield picture

        # Fast settings, without look-ahead.
        options = {"deadline": "realtime", "cpu-used": "8", "crf": "28", "b": "0"}
        options["lag-in-frames"] = "0"
        with atomic_write(out / VIDEOS / f"{clip.id}.webm", durable=False) as file:
            encode_video(
                file, pictures(), container="webm", codec="libvpx-vp9", pixel_format="yuv420p",
                fps=fps, options=options,
            )  # fmt: skip
        write_text(out / _boxes_name(number), json.dumps(boxes), durable=False)

    def item_files(self, number: int, media: bool) -> tuple[str, ...]:
        return f"{VIDEOS}/{number + 1}.webm", _boxes_name(number)

    def finish(self, out: Path) -> None:
        shutil.rmtree(out / _CLIP_BOXES, ignore_errors=True)

    def index_files(self, out: Path) -> dict[str, str]:
        """Join the boxes of the clips in two files (of four); return the split files."""
        half = (self.videos + 1) // 2
        for number, clips in enumerate((range(half), range(half, self.videos)), 1):
            with atomic_write(out / _BOXES.format(number), durable=False) as file:
                file.write(b"{")
                for index in clips:
                    comma = ", " if index > clips.start else ""
                    boxes = (out / _boxes_name(index)).read_text()
                    file.write(f'{comma}"{index + 1}": {boxes}'.encode())
                file.write(b"}")
        return {f"{name}.json": json.dumps(content) for name, content in split_files(self).items()}


def write_something_else(
    out: Path,
    spec: SyntheticSomethingElse,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic Something-Else to a folder, or continue an interrupted call.

    Returns ``out``, with ``20bn-something-something-v2/<id>.webm`` (VP9), ``dataset_splits/``
    (compositional, compositional_shuffled, compositional_oneobject, fewshot),
    ``bounding_box_smthsmth_part{1,2}.json`` and ``synthetic.json``. For arguments and errors see
    :func:`~ivcl_fast.data.synthetic.cater.write.write_cater`; ``progress`` counts videos.

    Example::

        >>> write_something_else(Path("data/sse"), SyntheticSomethingElse(train=180, val=36))
    """
    return write_dataset(out, spec, workers, progress)


def _boxes_name(number: int) -> str:
    return f"{_CLIP_BOXES}/{number + 1}.json"


@dataclass(frozen=True)
class _Clip:
    """Content of a clip."""

    id: str
    template: Template
    nouns: list[Noun]
    seconds: float
    rng: np.random.Generator
    """Generator of all other random choices."""

    @property
    def placeholders(self) -> list[str]:
        return [str(noun) for noun in self.nouns[: self.template.placeholders]]


def _plan(spec: SyntheticSomethingElse, index: int) -> _Clip:
    """Choose the content of a clip; templates take turns.

    A template appears with one half of the nouns in training and with the other half in validation,
    so training shows both, but never together.
    """
    rng = np.random.default_rng((spec.seed, index))
    held_out = index >= spec.train
    template = TEMPLATES[(index - spec.train * held_out) % len(TEMPLATES)]
    nouns = choose_nouns(template, template.group ^ held_out, rng)
    return _Clip(str(index + 1), template, nouns, rng.uniform(*_SECONDS), rng)


def _label(clip: _Clip, layer: Layer, box: Box) -> dict[str, Any] | None:
    """Describe a visible layer; None, as in the data set, for things that the text leaves out."""
    if layer.number is None:
        names = "hand", "hand"
    elif layer.number < len(clip.placeholders):
        names = clip.placeholders[layer.number], f"{layer.number:04d}"
    else:
        return None
    box2d = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return {"box2d": box2d, "category": names[0], "standard_category": names[1]}


def _frame_boxes(clip: _Clip, number: int, labels: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": f"{clip.id}/{number:04d}.jpg",
        "nr_instances": len(labels),
        "gt_placeholders": clip.placeholders,
        "labels": labels,
    }


def split_files(spec: SyntheticSomethingElse) -> dict[str, Any]:
    """Compute the content of every split file, by its name in the data set without ``.json``."""
    clips = [_plan(spec, index) for index in range(spec.videos)]
    train, val = clips[: spec.train], clips[spec.train :]
    one_object = {c.id for c in clips if any(n.shape == _ONE_OBJECT for n in c.nouns)}
    base, novel = ([t for t in TEMPLATES if t.group == group] for group in (0, 1))
    files = {
        "compositional/objectsA": [str(noun) for noun in nouns_of_set(0)],
        "compositional/objectsB": [str(noun) for noun in nouns_of_set(1)],
        "fewshot/base_labels": _labels(base),
        "fewshot/finetune_labels": _labels(novel),
        "fewshot/base_training_set": _entries(c for c in train if c.template in base),
        "fewshot/base_validation_set": _entries(c for c in val if c.template in base),
        "fewshot/finetune_5shot_training": _entries(_shots(train, novel, 5)),
        "fewshot/finetune_10shot_train": _entries(_shots(train, novel, 10)),
    }
    for shots in (5, 10):
        validation = _entries(c for c in val if c.template in novel)
        files[f"fewshot/finetune_{shots}shot_validation"] = validation
    for folder, parts in {
        "compositional": (_entries(train), _entries(val)),
        "compositional_shuffled": map(_entries, _shuffled(spec, clips)),
        "compositional_oneobject": (
            _one_object_entries(c for c in clips if c.id in one_object),
            _one_object_entries(c for c in clips if c.id not in one_object),
        ),
    }.items():
        files[f"{folder}/labels"] = _labels(TEMPLATES)
        files[f"{folder}/train"], files[f"{folder}/validation"] = parts
    return files


def _labels(templates: Iterable[Template]) -> dict[str, int]:
    return {template.key: label for label, template in enumerate(templates)}


def _entries(clips: Iterable[_Clip]) -> list[dict[str, Any]]:
    return [
        {
            "id": clip.id,
            "label": clip.template.text.lower()
            .replace("[something]", "{}")
            .format(*clip.placeholders),
            "template": clip.template.text,
            "placeholders": clip.placeholders,
        }
        for clip in clips
    ]


def _one_object_entries(clips: Iterable[_Clip]) -> list[dict[str, Any]]:
    # The data set spells the key like this.
    return [entry | {"new_placeholdes": entry["placeholders"]} for entry in _entries(clips)]


def _shots(train: list[_Clip], templates: list[Template], shots: int) -> list[_Clip]:
    """Select the first ``shots`` training clips of each template, or all if there are fewer."""
    return [c for t in templates for c in [c for c in train if c.template is t][:shots]]


def _shuffled(spec: SyntheticSomethingElse, clips: list[_Clip]) -> tuple[list[_Clip], list[_Clip]]:
    """Split all clips regardless of their nouns, with the same number of clips per template."""
    rng = np.random.default_rng((spec.seed, spec.videos, 1))
    order = [clips[i] for i in rng.permutation(len(clips))]
    train, val = [], []
    for number, template in enumerate(TEMPLATES):
        own = [clip for clip in order if clip.template is template]
        count = len(range(number, spec.train, len(TEMPLATES)))
        train += own[:count]
        val += own[count:]
    return train, val
