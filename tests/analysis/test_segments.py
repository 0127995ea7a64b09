"""The adjusted Rand index agrees with its definition on pairs; masks are those that models see."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
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
from ivcl_fast.analysis import linear_probes, sample
from ivcl_fast.analysis.segments import adjusted_rand_index, at_pixels, score_segments
from ivcl_fast.data.crop import Square, square_crop
from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import make_decoder
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.evaluation import metrics
from ivcl_fast.train import main as train_main
from tests.support.small_models import RUN_FLAGS


def drawn(count: int, pixels: int, least: int = 0) -> Tensor:
    """Random segments ``[4, pixels]`` from ``least`` on, ``count`` of them."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(least, least + count, (4, pixels), generator=generator)


def test_ari_is_that_of_pairs_of_pixels() -> None:
    found, true = drawn(5, 30), drawn(4, 30, least=-1)
    for ari, slots, objects in zip(adjusted_rand_index(found, true), found, true, strict=True):
        pairs = [
            (slots[i] == slots[j], objects[i] == objects[j])
            for i, j in combinations(range(30), 2)
            if objects[i] >= 0 and objects[j] >= 0
        ]
        together, same = (torch.tensor(x).double() for x in zip(*pairs, strict=True))
        expected = together.sum() * same.mean()
        most = (together.sum() + same.sum()) / 2
        torch.testing.assert_close(
            ari, ((together * same).sum() - expected) / (most - expected), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("true", [[-1, -1, -1, -1], [-1, 2, 2, 2], [-1, -1, -1, 0]])
def test_fewer_than_two_objects_have_no_score(true: list[int]) -> None:
    assert adjusted_rand_index(torch.tensor([[0, 1, 1, 0]]), torch.tensor([true])).isnan().all()


@pytest.mark.parametrize(("square", "size"), [("none", 16), ("start", 64), ("center", 16)])
def test_masks_lie_where_decoders_put_frames(square: Square, size: int, tmp_path: Path) -> None:
    """A frame that is bright from some column on, which is half of a pixel at least once."""
    for column in range(40, 120, 7):
        frame = np.zeros((120, 160, 3), dtype=np.uint8)
        frame[:, column:] = 200
        Image.fromarray(frame).save(tmp_path / "0.png")
        media = Media("clip", (tmp_path / "0.png",))
        crop = square_crop(square, 120, 160)
        (seen,) = make_decoder("pyav", size).decode(media, [0], crop)
        (mask,) = at_pixels((frame[None, ..., 0] > 0).astype(int), size, square)
        assert not ((mask == 1) ^ (seen[0] > 100))[(seen[0] - 100.0).abs() > 20].any(), column


def test_segments_are_compared_with_the_objects_of_their_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots that draw an object each score 1, those of the video before far less."""
    spec, length, size = SyntheticCater(train=1, val=3), 4, 32
    root = write_cater(tmp_path / "cater", spec, 1)
    dataset = Cater(root, "localize")
    clips = dataset.clips("val")

    def one_hot(number: int) -> Tensor:
        """Slots' shares ``[T, S, H, W]`` of evenly spaced frames of a video, an object each."""
        ids = [0, 12, 25, 37]
        masks = at_pixels(spec.object_masks(number, ids), size, "center")
        return F.one_hot(masks + 1, 12).permute(0, 3, 1, 2)

    data = SimpleNamespace(
        dataset=dataset,
        eval_split="val",
        usable_clips=lambda split: clips,
        num_frames=lambda media: 38,
        scene=lambda name, frames: dataset.scene(name, frames),
        rows=lambda some, length: torch.tensor(
            [clips.index(replace(clip, frames=None)) for clip in some]
        ),
    )
    sizes = SimpleNamespace(num_frames=length, image_size=size)
    settings = SimpleNamespace(model=sizes, data=SimpleNamespace(crop="center"))
    run: Any = SimpleNamespace(config=settings, data=data, device=torch.device("cpu"), amp=False)
    monkeypatch.setattr(sample, "BATCH", 2)

    def drawing(offset: int) -> Any:
        videos = [one_hot(number) for number in range(4)]
        return SimpleNamespace(
            draw=lambda rows: (None, torch.stack([videos[1 + int(i) - offset] for i in rows]))
        )

    models: Any = {"exact": drawing(0), "of others": drawing(1), "draws nothing": None}
    found = score_segments(run, 3, models)
    assert found.keys() == {"exact", "of others"}
    assert [score.value for score in found["exact"].values()] == [1.0, 1.0]
    assert found["of others"]["FG-ARI"].value < 0.7 > found["of others"]["ARI"].value
    (root / "synthetic.json").unlink()  # as published: no masks are known
    assert score_segments(run, 3, models) == {}


def test_slots_that_draw_are_scored_as_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    data = write_cater(tmp_path / "cater", SyntheticCater(train=12, val=10), 1)
    where = ["--data", f"cater:{data}", "--out", tmp_path, "--name", "run", "--stage", "pretrain"]
    assert (
        command(train_main, *where, *RUN_FLAGS, "--no-pictures", "--objective", "slot_attention")[0]
        == 0
    )
    monkeypatch.setattr(linear_probes, "STEPS", 3)  # quick
    monkeypatch.setattr(metrics, "AP_RESAMPLES", 20)
    status, out, _ = command(probes.main, tmp_path / "run", "--train-clips", 12)
    assert status == 0 and "FG-ARI" in out and " ARI" in out
    folder = tmp_path / "run" / "probes"
    scores = json.loads((folder / "probes.json").read_text())["segments"]
    assert scores.keys() == {"untrained", "pretrained"}
    for score in (scores[model][of] for model in scores for of in ("FG-ARI", "ARI")):
        assert -0.1 < score["low"] <= score["value"] <= score["high"] < 0.9
    (section,) = re.findall(r"## objects in slots\n.*", (folder / "probes.md").read_text(), re.S)
    assert section.count("\n| ") == 3 and "adjusted Rand index" in section
