"""Writes a synthetic Something-Else in the published format: VP9 clips and splits, no boxes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from ivcl_fast.data.synthetic.something_else.render import render
from ivcl_fast.data.synthetic.video import encode_video
from ivcl_fast.data.synthetic.writer import SyntheticSpec
from ivcl_fast.files import atomic_write

_SECONDS = 2.0, 5.0
_FORMATS = {"embedded": (142, 80, 8), "full": (427, 240, 12)}
"""Width, height and frames per second."""


@dataclass(frozen=True)
class SyntheticSomethingElse(SyntheticSpec):
    """Describes a synthetic Something-Else: VP9 ``20bn-something-something-v2/<id>.webm`` and
    ``dataset_splits/`` (compositional and shuffled).
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
    format_version = 4
    unit = "videos"
    folders = (VIDEOS,)
    index = "dataset_splits"

    @property
    def videos(self) -> int:
        """Number of all clips; the first ``train`` of them are the training clips."""
        return self.train + self.val

    def write_item(self, out: Path, media: bool, number: int) -> None:
        """Write a video."""
        (width, height, fps), clip = _FORMATS[self.size], _plan(self, number)
        layers = play(clip.template, clip.nouns, round(clip.seconds * fps), clip.rng)
        # Fast settings, without look-ahead.
        options = {"deadline": "realtime", "cpu-used": "8", "crf": "28", "b": "0"}
        options["lag-in-frames"] = "0"
        with atomic_write(out / VIDEOS / f"{clip.id}.webm", durable=False) as file:
            encode_video(
                file, render(layers, width, height, clip.rng), container="webm",
                codec="libvpx-vp9", pixel_format="yuv420p", fps=fps, options=options,
            )  # fmt: skip

    def item_files(self, number: int, media: bool) -> tuple[str, ...]:
        return (f"{VIDEOS}/{number + 1}.webm",)

    def index_files(self, out: Path) -> dict[str, str]:
        return {f"{name}.json": json.dumps(content) for name, content in split_files(self).items()}


@dataclass(frozen=True)
class _Clip:
    """Content of a clip."""

    id: str
    template: Template
    nouns: list[Noun]
    seconds: float
    rng: np.random.Generator
    """Generator of all other random choices."""


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


def split_files(spec: SyntheticSomethingElse) -> dict[str, Any]:
    """Compute the content of every split file, by its name in the data set without ``.json``."""
    clips = [_plan(spec, index) for index in range(spec.videos)]
    train, val = clips[: spec.train], clips[spec.train :]
    order = np.random.default_rng(spec.seed).permutation(len(clips))
    shuffled = [clips[i] for i in order]
    labels = {template.key: label for label, template in enumerate(TEMPLATES)}
    return {
        "compositional/labels": labels,
        "compositional/train": _entries(train),
        "compositional/validation": _entries(val),
        "compositional/objectsA": [str(noun) for noun in nouns_of_set(0)],
        "compositional/objectsB": [str(noun) for noun in nouns_of_set(1)],
        "compositional_shuffled/labels": labels,
        "compositional_shuffled/train": _entries(shuffled[: spec.train]),
        "compositional_shuffled/validation": _entries(shuffled[spec.train :]),
    }


def _entries(clips: Iterable[_Clip]) -> list[dict[str, Any]]:
    return [
        {
            "id": clip.id,
            "label": clip.template.text.lower().replace("[something]", "{}").format(*clip.nouns),
            "template": clip.template.text,
            "placeholders": [str(noun) for noun in clip.nouns],
        }
        for clip in clips
    ]
