"""The clips and splits of a synthetic Something-Else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.formats.something_else import SomethingElse
from ivcl_fast.data.synthetic.something_else.actions import (
    ASPECT,
    COLORS,
    SHAPES,
    TEMPLATES,
    choose_nouns,
    nouns_of_set,
    play,
)
from ivcl_fast.data.synthetic.something_else.write import SyntheticSomethingElse, split_files
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.files import LOCK

VIDEOS = "20bn-something-something-v2"


def decode(path: Path, size: tuple[int, int], fps: int) -> np.ndarray:
    """uint8 [F, height, width, 3]."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.average_rate) == ("vp9", fps)
        assert (stream.width, stream.height) == size
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])


def test_files(something_else: Path) -> None:
    assert sorted(path.name for path in something_else.iterdir()) == [
        LOCK, VIDEOS, "dataset_splits", "synthetic.json",
    ]  # fmt: skip
    assert {p.name for p in (something_else / VIDEOS).iterdir()} == {
        f"{i}.webm" for i in range(1, 39)
    }
    frames = {len(decode(p, (142, 80), 8)) for p in (something_else / VIDEOS).iterdir()}
    assert min(frames) >= 16 and max(frames) <= 40 and len(frames) > 5


@pytest.mark.parametrize("task", ["compositional", "compositional_shuffled"])
def test_the_reader_reads_every_task(something_else: Path, task: str) -> None:
    data = SomethingElse(something_else, task)
    train, val = data.clips("train"), data.clips("validation")
    assert not {c.name for c in train} & {c.name for c in val}
    media = data.media()
    assert {m.name for m in media} == {c.media for c in train + val}
    assert all(m.files[0].is_file() for m in media)
    # As in the data set, the classes are not in alphabetical order.
    names = [data.describe(label) for label in range(data.num_classes)]
    assert names != sorted(names)


def test_labels_are_balanced() -> None:
    files = split_files(SyntheticSomethingElse(train=8 * 12 + 5, val=8 * 3))
    train, val = (
        Counter(e["template"] for e in files[f"compositional/{s}"]) for s in ("train", "validation")
    )
    assert len(train) == 8 and set(train.values()) == {12, 13} and set(val.values()) == {3}


def test_every_noun_of_a_verb_is_new_in_validation() -> None:
    files = split_files(SyntheticSomethingElse(train=900, val=900))
    sets = [set(files[f"compositional/objects{which}"]) for which in "AB"]
    assert not sets[0] & sets[1] and len(sets[0]) == len(sets[1]) == 24
    group = {template.text: template.group for template in TEMPLATES}
    for held_out, split in enumerate(("train", "validation")):
        for entry in files[f"compositional/{split}"]:
            assert set(entry["placeholders"]) <= sets[group[entry["template"]] ^ held_out]
    for split in ("train", "validation"):  # shuffled, training shows verbs with both sets
        shuffled = files[f"compositional_shuffled/{split}"]
        own = [set(e["placeholders"]) <= sets[group[e["template"]]] for e in shuffled]
        assert len(own) == 900 and 400 < sum(own) < 500
    ids = [{e["id"] for e in files[f"compositional_shuffled/{s}"]} for s in ("train", "validation")]
    assert not ids[0] & ids[1]
    # Every word occurs in both sets: a set consists of combinations.
    for which in (0, 1):
        nouns = nouns_of_set(which)
        words = [set(column) for column in zip(*nouns, strict=True)]
        assert words == [set(COLORS), set(SHAPES)]


def test_opposites_show_the_same_frames() -> None:
    """Opposites are the same act backwards or mirrored, so no single frame distinguishes them."""
    opposites = [(a, b) for a in TEMPLATES for b in TEMPLATES if a.act is b.act and a is not b]
    assert len(opposites) == 2 * 2 + 4 * 3  # up/down, closer/away; push, pull
    for a, b in opposites:
        nouns = choose_nouns(a, 0, np.random.default_rng(1))
        first, second = (play(t, nouns, 20, np.random.default_rng(2)) for t in (a, b))
        step = 1 if a.backwards == b.backwards else -1
        for one, other in zip(first, second, strict=True):
            x = other.x if a.mirrored == b.mirrored else ASPECT - other.x
            np.testing.assert_allclose(one.x, x[::step], atol=1e-12)
            np.testing.assert_array_equal(one.y, other.y[::step])


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.key)
def test_things_stay_in_the_frame_and_hands_come_and_go(template) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        layers = play(template, choose_nouns(template, 0, rng), 30, rng)
        for layer in layers:
            ends = [(layer.x[i], layer.y[i]) for i in (0, -1)]
            inside = [0 <= x <= ASPECT and 0 <= y <= 1 for x, y in ends]
            if layer.noun is None:
                assert not all(inside)
            else:
                assert (np.abs(layer.x - ASPECT / 2) < ASPECT / 2 - 0.7 * layer.size).all()
                assert (np.abs(layer.y - 0.5) < 0.5 - 0.7 * layer.size).all()


def test_full_size(tmp_path: Path, something_else: Path) -> None:
    """Full size shows the same acts as embedded size, larger and in more frames."""
    spec = SyntheticSomethingElse(train=1, val=0, seed=7, size="full")
    out = write_dataset(tmp_path / "full", spec, workers=1)
    video = decode(out / VIDEOS / "1.webm", (427, 240), 12)
    small = decode(something_else / VIDEOS / "1.webm", (142, 80), 8)
    assert 24 <= len(video) <= 60
    assert len(video) == pytest.approx(1.5 * len(small), abs=1.5)
    shrunk = Image.fromarray(video[-1]).resize((142, 80))
    assert np.abs(np.asarray(shrunk).astype(int) - small[-1]).mean() < 8
