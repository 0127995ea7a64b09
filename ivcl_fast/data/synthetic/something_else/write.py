"""Writes a synthetic Something-Else in the true on-disk format: VP9 clips, splits and boxes.

Every clip is a function of the spec and its number alone, and appears under its name only when
whole; the splits come last. So a run that was killed is continued by the same call, with the same
bytes, and a folder that has ``dataset_splits`` is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np

from ivcl_fast.data.formats.something_else import VIDEOS
from ivcl_fast.data.synthetic.something_else.actions import (
    TEMPLATES,
    Noun,
    Template,
    choose_nouns,
    nouns_of_set,
    play,
)
from ivcl_fast.data.synthetic.something_else.render import Seen, render
from ivcl_fast.data.synthetic.writer import (
    check_choice,
    check_counts,
    check_workers,
    claim,
    whole,
    write_items,
)

Size = Literal["embedded", "full"]

_FORMAT_VERSION = 1
_SPLITS = "dataset_splits"
_CLIP_BOXES = "boxes.part"
"""Holds the boxes clip by clip until all are there."""
_SECONDS = 2.0, 5.0
_ONE_OBJECT = "circle"
"""The training clips of the one-object split have a thing of this shape, the others none."""


@dataclass(frozen=True)
class _Format:
    width: int
    height: int
    fps: int


_FORMATS = {"embedded": _Format(142, 80, 8), "full": _Format(427, 240, 12)}


@dataclass(frozen=True)
class SyntheticSomethingElse:
    """Which data set to make.

    Raises:
        UserError: a field has a value that it does not accept.
    """

    train: int = 3600
    """Number of training clips of the compositional split (the data set has 54,919)."""
    val: int = 720
    """Number of its validation clips (the data set has 57,876)."""
    seed: int = 0
    """Another seed makes other clips."""
    size: Size = "embedded"
    """``full`` is the data set's own 427 x 240 at 12 fps, 24 to 60 frames; ``embedded`` shows the
    same at 142 x 80 and 8 fps in 16 to 40 frames."""

    def __post_init__(self) -> None:
        check_counts(self, {"train": 1, "val": 0, "seed": 0})
        check_choice(self, "size", get_args(Size))

    @property
    def clips(self) -> int:
        """Number of clips in all; the first ``train`` of them are the training clips."""
        return self.train + self.val

    @property
    def default_name(self) -> str:
        """Name of the folder it is kept in unless the user names another."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"synthetic-something-else-{self.size}-{self.train}-{self.val}{seed}"


def write_something_else(
    out: Path,
    spec: SyntheticSomethingElse,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to a folder, or complete what an earlier call left there.

    Args:
        out: the folder; made if missing. A folder begun with another spec is refused.
        spec: what to make.
        workers: processes, one thread each; default one per CPU. The bytes do not depend on it.
        progress: called with (clips done, clips in all), also for those found done.

    Returns:
        ``out``, with ``20bn-something-something-v2/<id>.webm`` (VP9), ``dataset_splits/``
        (compositional, compositional_shuffled, compositional_oneobject, fewshot),
        ``bounding_box_smthsmth_part{1,2}.json`` and ``synthetic.json``.

    Raises:
        UserError: the folder holds something else.
        KeyboardInterrupt: stopped by the user; its message says how to go on.
    """
    check_workers(workers)
    if not claim(out, spec, _FORMAT_VERSION, (VIDEOS,), _SPLITS):
        (out / _CLIP_BOXES).mkdir(exist_ok=True)
        write_items(
            partial(_write_clip, out, spec),
            partial(_boxes_path, out),
            spec.clips,
            "clips",
            workers,
            progress,
        )
        _write_boxes(out, spec)
        _write_splits(out, spec)
    shutil.rmtree(out / _CLIP_BOXES, ignore_errors=True)
    return out


@dataclass(frozen=True)
class _Clip:
    """What a clip is to show."""

    id: str
    template: Template
    nouns: list[Noun]
    seconds: float
    rng: np.random.Generator
    """For everything else."""

    @property
    def placeholders(self) -> list[str]:
        return [str(noun) for noun in self.nouns[: self.template.placeholders]]


def _plan(spec: SyntheticSomethingElse, index: int) -> _Clip:
    """Templates take turns; each is shown with one half of the nouns in training, then the other.

    So a verb and a noun of validation are both known, but never together.
    """
    rng = np.random.default_rng((spec.seed, index))
    held_out = index >= spec.train
    template = TEMPLATES[(index - spec.train * held_out) % len(TEMPLATES)]
    nouns = choose_nouns(template, template.group ^ held_out, rng)
    return _Clip(str(index + 1), template, nouns, rng.uniform(*_SECONDS), rng)


def _boxes_path(out: Path, index: int) -> Path:
    return out / _CLIP_BOXES / f"{index + 1}.json"


def _write_clip(
    out: Path, spec: SyntheticSomethingElse, index: int, report: Callable[[int], None]
) -> None:
    """Write one video and then its boxes, whose presence says that both are whole."""
    form, clip = _FORMATS[spec.size], _plan(spec, index)
    layers = play(clip.template, clip.nouns, round(clip.seconds * form.fps), clip.rng)
    names: list[tuple[str, str] | None] = []  # category and standard category by layer
    for layer in layers:
        if layer.number is None:
            names.append(("hand", "hand"))
        elif layer.number < len(clip.placeholders):
            names.append((clip.placeholders[layer.number], f"{layer.number:04d}"))
        else:
            names.append(None)  # the template does not name it, so nobody boxed it
    boxes: list[dict[str, Any]] = []

    def pictures() -> Iterator[np.ndarray]:
        for picture, seen in render(layers, form.width, form.height, clip.rng):
            boxes.append(_frame_boxes(clip, len(boxes) + 1, seen, names))
            yield picture

    with whole(out / VIDEOS / f"{clip.id}.webm") as part:
        _encode(part, form, pictures())
    with whole(_boxes_path(out, index)) as part:
        part.write_text(json.dumps(boxes))
    report(1)


def _frame_boxes(
    clip: _Clip, number: int, seen: list[Seen], names: list[tuple[str, str] | None]
) -> dict[str, Any]:
    labels = []
    for layer, (x1, y1, x2, y2) in seen:
        if name := names[layer]:
            labels.append(
                {
                    "box2d": {"x1": x1, "x2": x2, "y1": y1, "y2": y2},
                    "category": name[0],
                    "standard_category": name[1],
                }
            )
    return {
        "name": f"{clip.id}/{number:04d}.jpg",
        "nr_instances": len(labels),
        "gt_placeholders": clip.placeholders,
        "labels": labels,
    }


def _encode(path: Path, form: _Format, pictures: Iterable[np.ndarray]) -> None:
    # One thread and no look-ahead; "bitexact" leaves version strings and random ids out: the bytes
    # are the pictures' alone.
    options = {
        "deadline": "realtime",
        "cpu-used": "8",
        "crf": "28",
        "b": "0",
        "lag-in-frames": "0",
        "threads": "1",
        "flags": "+bitexact",
    }
    with av.open(f"file:{path}", "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=form.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = form.width, form.height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _write_boxes(out: Path, spec: SyntheticSomethingElse) -> None:
    """Join the clips' boxes in two files, as the data set has them in four."""
    half = (spec.clips + 1) // 2
    for number, part_of in enumerate((range(half), range(half, spec.clips)), 1):
        with (
            whole(out / f"bounding_box_smthsmth_part{number}.json") as part,
            part.open("w") as file,
        ):
            file.write("{")
            for index in part_of:
                comma = ", " if index > part_of.start else ""
                file.write(f'{comma}"{index + 1}": {_boxes_path(out, index).read_text()}')
            file.write("}")


def _write_splits(out: Path, spec: SyntheticSomethingElse) -> None:
    """Write all split files beside their place and move them there at once."""
    part = out / f"{_SPLITS}.part"
    shutil.rmtree(part, ignore_errors=True)
    for name, content in split_files(spec).items():
        path = part / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    os.replace(part, out / _SPLITS)


def split_files(spec: SyntheticSomethingElse) -> dict[str, Any]:
    """The content of every split file, with the names that the data set has."""
    clips = [_plan(spec, index) for index in range(spec.clips)]
    train, val = clips[: spec.train], clips[spec.train :]
    shuffled_train, shuffled_val = _shuffled(spec, clips)
    one_object = {c.id for c in clips if any(n.shape == _ONE_OBJECT for n in c.nouns)}
    base, novel = ([t for t in TEMPLATES if t.group == group] for group in (0, 1))
    return {
        "compositional/labels": _labels(TEMPLATES),
        "compositional/train": _entries(train),
        "compositional/validation": _entries(val),
        "compositional/objectsA": [str(noun) for noun in nouns_of_set(0)],
        "compositional/objectsB": [str(noun) for noun in nouns_of_set(1)],
        "compositional_shuffled/labels": _labels(TEMPLATES),
        "compositional_shuffled/train": _entries(shuffled_train),
        "compositional_shuffled/validation": _entries(shuffled_val),
        "compositional_oneobject/labels": _labels(TEMPLATES),
        "compositional_oneobject/train": _one_object_entries(
            c for c in clips if c.id in one_object
        ),
        "compositional_oneobject/validation": _one_object_entries(
            c for c in clips if c.id not in one_object
        ),
        "fewshot/base_labels": _labels(base),
        "fewshot/base_training_set": _entries(c for c in train if c.template in base),
        "fewshot/base_validation_set": _entries(c for c in val if c.template in base),
        "fewshot/finetune_labels": _labels(novel),
        "fewshot/finetune_5shot_training": _entries(_shots(train, novel, 5)),
        "fewshot/finetune_5shot_validation": _entries(c for c in val if c.template in novel),
        "fewshot/finetune_10shot_train": _entries(_shots(train, novel, 10)),
        "fewshot/finetune_10shot_validation": _entries(c for c in val if c.template in novel),
    }


def _labels(templates: Iterable[Template]) -> dict[str, int]:
    return {template.key: label for label, template in enumerate(templates)}


def _entries(clips: Iterable[_Clip]) -> list[dict[str, Any]]:
    entries = []
    for clip in clips:
        text = clip.template.text.lower()
        for noun in clip.placeholders:
            text = text.replace("[something]", noun, 1)
        entries.append(
            {
                "id": clip.id,
                "label": text,
                "template": clip.template.text,
                "placeholders": clip.placeholders,
            }
        )
    return entries


def _one_object_entries(clips: Iterable[_Clip]) -> list[dict[str, Any]]:
    # The key is spelt so in the data set.
    return [entry | {"new_placeholdes": entry["placeholders"]} for entry in _entries(clips)]


def _shots(train: list[_Clip], templates: list[Template], shots: int) -> list[_Clip]:
    """The first training clips of each template, as many as there are up to ``shots``."""
    return [c for t in templates for c in [c for c in train if c.template is t][:shots]]


def _shuffled(spec: SyntheticSomethingElse, clips: list[_Clip]) -> tuple[list[_Clip], list[_Clip]]:
    """All clips split anew regardless of nouns, each template in the same numbers as before."""
    rng = np.random.default_rng((spec.seed, spec.clips, 1))
    order = [clips[i] for i in rng.permutation(len(clips))]
    train, val = [], []
    for number, template in enumerate(TEMPLATES):
        own = [clip for clip in order if clip.template is template]
        count = len(range(number, spec.train, len(TEMPLATES)))
        train += own[:count]
        val += own[count:]
    return train, val
