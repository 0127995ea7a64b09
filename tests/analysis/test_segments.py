"""Segments are scored against the objects; masks are those that models see."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ivcl_fast import probes
from ivcl_fast.analysis import linear_probes, segments
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.decode.media import Square
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.evaluation import metrics
from ivcl_fast.train import main as train_main
from tests.support.small_models import RUN_FLAGS

TABLES = segments.OBJECTS, segments.REIDENTIFICATION, segments.HIDDEN


@pytest.mark.parametrize(("square", "size"), [("none", 16), ("start", 64), ("center", 16)])
def test_masks_lie_where_decoders_put_frames(square: Square, size: int, tmp_path: Path) -> None:
    """A frame that is bright from some column on, which is half of a pixel at least once."""
    for column in range(40, 120, 7):
        frame = np.zeros((120, 160, 3), dtype=np.uint8)
        frame[:, column:] = 200
        Image.fromarray(frame).save(tmp_path / "0.png")
        media = Media("clip", (tmp_path / "0.png",))
        (seen,) = make_decoder("pyav", size).decode(media, [0], square)
        (mask,) = segments.at_pixels((frame[None, ..., 0] > 0).astype(int), size, square)
        assert not ((mask == 1) ^ (seen[0] > 100))[(seen[0] - 100.0).abs() > 20].any(), column


def test_an_object_alone_is_also_seen_where_others_hide_it() -> None:
    spec, frames = SyntheticCater(), range(0, 38, 3)
    masks, hidden = spec.object_masks(0, frames), 0
    for number in range(masks.max() + 1):
        alone = spec.object_masks(0, frames, alone=number)
        assert set(np.unique(alone)) == {-1, number}
        visible, whole = masks == number, alone == number
        # Where two objects meet, neither alone may cover most of a pixel.
        assert (visible & whole).sum() > 0.9 * visible.sum()
        assert whole.any(axis=(1, 2)).all()
        hidden += (~visible.any(axis=(1, 2))).sum()
    assert hidden


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("cater"), SyntheticCater(train=12, val=10), 1)


def test_segments_are_compared_with_the_objects_of_their_frames(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots that draw an object each, with those of the first video, and with its own masks."""
    spec, size, first = SyntheticCater(train=12, val=10), 32, 12
    dataset = Cater(data, "localize")
    clips = dataset.clips("val")

    def shares(number: int) -> Tensor:
        """One-hot shares ``[T, S + 1, H, W]``, of which the background is the last."""
        masks = segments.at_pixels(spec.object_masks(number, range(38)), size, "center")
        return F.one_hot(masks % 12, 12).permute(0, 3, 1, 2)

    held = SimpleNamespace(
        dataset=dataset, eval_split="val", usable_clips=lambda split, count: clips[:count],
        num_frames=lambda media: 38, scene=lambda name, frames: dataset.scene(name, frames),
        rows=lambda some, length: torch.stack(
            [torch.full((38, 64, 48), clips.index(replace(clip, frames=None))) for clip in some]
        ),
    )  # fmt: skip
    sizes = SimpleNamespace(num_frames=4, image_size=size, patch_size=4, num_slots=11)
    settings = SimpleNamespace(model=sizes, data=SimpleNamespace(crop="center"))
    run: Any = SimpleNamespace(config=settings, data=held, device=torch.device("cpu"), amp=False)
    monkeypatch.setattr(segments, "BATCH", 2)

    def drawing(offset: int) -> Any:
        videos = [shares(first + number) for number in range(-1, 6)]
        return SimpleNamespace(
            draw=lambda rows: (
                None,
                torch.stack([videos[1 + int(row[0, 0, 0]) - offset] for row in rows]),
            )
        )

    models: Any = {"exact": drawing(0), "of others": drawing(1), "draws nothing": None}
    found = segments.score_segments(run, 6, models)
    objects, again, hidden = (found[table] for table in TABLES)
    upper = segments.TRUE + segments.HELD
    assert list(objects) == ["exact", "exact, held", "of others", "of others, held", upper]
    assert [score.value for score in objects["exact"].values()] == [1.0] * 6
    assert objects["of others"]["FG-ARI"].value < 0.7 > objects["of others"]["ARI"].value
    assert objects["of others"]["video mBO"].value < 0.7
    assert again["exact"]["all"].value == 1.0 > again["of others"]["all"].value
    # Slots that draw nothing are where they were; so is the baseline, which knows the whole box.
    assert hidden.keys() == {*objects, segments.FROZEN}
    for kind in ("occluded", "contained", "carried"):
        own, frozen = (
            hidden[name][f"distance, {kind}"].value for name in ("exact", segments.FROZEN)
        )
        assert abs(own - frozen) < 0.05 and own > 0
    # The segments of each frame are right but for the smallest. In these pixels, objects have no
    # colour: only places and sizes tell them apart, and slots that touch are joined.
    assert objects["exact, held"]["mBO"].value < 0.7 and objects[upper]["FG-ARI"].value > 0.99
    assert 0.5 < again[upper]["all"].value < 1.0
    frozen = hidden[segments.FROZEN]
    assert frozen["mAP, carried"].value < frozen["mAP, contained"].value
    (data / "synthetic.json").rename(data / "kept.json")  # as published: no masks are known
    assert segments.score_segments(run, 3, models) == {}
    (data / "kept.json").rename(data / "synthetic.json")


@pytest.mark.parametrize("objective", ["slot_attention", "ivcl"])
def test_slots_are_scored_as_segments(
    objective: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    where = ["--data", f"cater:{data}", "--out", tmp_path, "--name", "run", "--stage", "pretrain"]
    flags = [*RUN_FLAGS, "--no-pictures", "--objective", objective]
    assert command(train_main, *where, *flags)[0] == 0
    monkeypatch.setattr(linear_probes, "STEPS", 3)  # quick
    monkeypatch.setattr(metrics, "AP_RESAMPLES", 20)
    status, out, _ = command(probes.main, tmp_path / "run", "--train-clips", 12)
    assert status == 0 and "FG-ARI" in out and "re-identification" in out and "frozen" in out
    folder = tmp_path / "run" / "probes"
    tables = json.loads((folder / "probes.json").read_text())["segments"]
    assert tables.keys() == {*TABLES}
    objects = tables[segments.OBJECTS]
    assert list(objects) == ["untrained", "pretrained", "pretrained, held", "true segments, held"]
    for of_model in list(objects.values())[:3]:
        for score in (of_model[of] for of in ("FG-ARI", "ARI", "video mBO")):
            assert -0.1 < score["low"] <= score["value"] <= score["high"] < 0.9
    (section,) = re.findall(r"## objects in slots\n.*?##", (folder / "probes.md").read_text(), re.S)
    assert section.count("\n| ") == 5
