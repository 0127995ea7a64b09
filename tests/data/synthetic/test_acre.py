"""The files of a synthetic ACRE have the format of ACRE's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ivcl_fast.data.formats.acre import Acre, media_name, object_table
from ivcl_fast.data.synthetic.acre.rules import draw_problem
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, run_lengths
from ivcl_fast.data.synthetic.writer import write_dataset


def test_the_reader_reads_what_the_writer_wrote(acre: Path) -> None:
    data = Acre(acre)
    for split, count in (("train", 4), ("val", 1), ("test", 3)):
        problems = data.problems(split)
        assert problems == [draw_problem("comp", split, 7, n) for n in range(count)]
        assert len(data.clips(split)) == 4 * count
    media = data.media()
    assert len(media) == 8
    assert sorted(p.name for p in (acre / "images").iterdir()) == [
        file.name for m in media for file in m.files
    ]
    with Image.open(media[0].files[3]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (96, 72))
        assert np.asarray(picture)[..., 3].min() == 255


def decode_mask(text: str, width: int, height: int) -> np.ndarray:
    lengths = [int(n) for n in text.split(",")]
    values = np.arange(len(lengths)) % 2
    return np.repeat(values, lengths).reshape(height, width).astype(bool)


def test_masks_by_hand() -> None:
    for text, mask in (("2,1,3", [[0, 0, 1], [0, 0, 0]]), ("0,1,4,1", [[1, 0, 0], [0, 0, 1]])):
        assert run_lengths(np.array(mask, dtype=bool)) == text
        np.testing.assert_array_equal(decode_mask(text, 3, 2), mask)
    assert run_lengths(np.zeros((2, 3), dtype=bool)) == "6"


def test_scenes(acre: Path) -> None:
    config = json.loads((acre / "config" / "test.json").read_text())
    table = object_table("comp", "test")
    common = {
        *("split", "image_filename", "camera", "light_state", "objects", "directions"),
        *("key_light", "back_light", "fill_light"),
    }
    for number, i in ((n, i) for n in range(3) for i in range(10)):
        name = f"{media_name('test', number)}_{i:02d}"
        scene = json.loads((acre / "scenes" / f"{name}.json").read_text())
        panel = config[number][i]
        machine = {"blicket_bbox", "blicket_mask"} if i < 6 else set()
        assert set(scene) == common | machine
        assert scene["image_filename"] == f"{name}.png"
        assert (scene["split"], scene["light_state"]) == ("test", panel["light_state"])
        assert set(scene["camera"]) == {"location", "rotation"}
        assert [(o["shape"], o["color"], o["material"]) for o in scene["objects"]] == [
            table[o] for o in panel["objects"]
        ]
        for o in scene["objects"]:
            assert set(o) == {
                *("shape", "size", "material", "3d_coords", "rotation", "pixel_coords"),
                *("bbox", "color", "mask"),
            }
            mask = decode_mask(o["mask"], 96, 72)
            left, top, width, height = o["bbox"]
            around = mask[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]
            assert around.sum() == mask.sum() > 10
            x, y, _ = o["pixel_coords"]
            assert left < x < left + width and top < y < top + height
        if machine:
            assert decode_mask(scene["blicket_mask"], 96, 72).sum() > 1000
            left, top, width, height = scene["blicket_bbox"]
            assert width > 60 and height > 40
    assert [set(panel) for panel in config[0][5:9]] == [
        {"light_state", "objects"},
        *2 * [{"light_state", "objects", "label", "type"}],
        {"light_state", "objects", "label", "type", "ref"},
    ]


def test_full_size_and_a_split_without_problems(tmp_path: Path) -> None:
    spec = SyntheticAcre(regime="sys", size="full", train=1, val=0, test=1)
    out = write_dataset(tmp_path / "full", spec, workers=1)
    assert sorted(p.name for p in (out / "config").iterdir()) == ["test.json", "train.json"]
    assert len(Acre(out).media()) == 2
    with Image.open(out / "images" / "ACRE_train_000000_09.png") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (320, 240))
    scene = json.loads((out / "scenes" / "ACRE_test_000000_00.json").read_text())
    assert decode_mask(scene["blicket_mask"], 320, 240).sum() > 10_000
