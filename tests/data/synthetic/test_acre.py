"""Folders of synthetic ACRE: files as ACRE's, written once and whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.formats.acre import Acre, media_name, object_table
from ivcl_fast.data.synthetic.acre.rules import draw_problem
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, run_lengths, write_acre
from ivcl_fast.errors import UserError

SPEC = SyntheticAcre(regime="comp", train=4, val=1, test=3, seed=7)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_acre(tmp_path_factory.mktemp("acre") / "made", SPEC, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_reader_reads_what_the_writer_wrote(made: Path) -> None:
    data = Acre(made)
    for split, count in (("train", 4), ("val", 1), ("test", 3)):
        problems = data.problems(split)
        assert problems == [draw_problem("comp", split, 7, n) for n in range(count)]
        assert len(data.clips(split)) == 4 * count
    media = data.media()
    assert len(media) == 8
    assert sorted(p.name for p in (made / "images").iterdir()) == [
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


def test_scenes(made: Path) -> None:
    config = json.loads((made / "config" / "test.json").read_text())
    table = object_table("comp", "test")
    common = {
        *("split", "image_filename", "camera", "light_state", "objects", "directions"),
        *("key_light", "back_light", "fill_light"),
    }
    for number, i in ((n, i) for n in range(3) for i in range(10)):
        name = f"{media_name('test', number)}_{i:02d}"
        scene = json.loads((made / "scenes" / f"{name}.json").read_text())
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
            assert mask[top : top + height, left : left + width].sum() == mask.sum() > 20
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
    out = write_acre(tmp_path / "full", spec, workers=1)
    assert sorted(p.name for p in (out / "config").iterdir()) == ["test.json", "train.json"]
    assert len(Acre(out).media()) == 2
    with Image.open(out / "images" / "ACRE_train_000000_09.png") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (320, 240))
    scene = json.loads((out / "scenes" / "ACRE_test_000000_00.json").read_text())
    assert decode_mask(scene["blicket_mask"], 320, 240).sum() > 10_000


def test_workers_do_not_change_a_byte(tmp_path: Path, made: Path) -> None:
    calls: list[tuple[int, int]] = []
    out = write_acre(tmp_path / "two", SPEC, 2, lambda done, total: calls.append((done, total)))
    assert contents(out) == contents(made)
    assert calls == [(done, 8) for done in range(9)]


def test_killed_and_continued(tmp_path: Path, made: Path) -> None:
    out = tmp_path / "stopped"
    program = (
        "import sys; from pathlib import Path\n"
        "from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, run_lengths, write_acre\n"
        "spec = SyntheticAcre(regime='comp', train=4, val=1, test=3, seed=7)\n"
        "write_acre(Path(sys.argv[1]), spec, workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(out)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    while process.poll() is None and not list(out.glob("scenes/*.json")):
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=120)  # the workers hold the other end of this pipe
    assert not (out / "config").exists(), "killed too late to show anything"
    assert contents(write_acre(out, SPEC, workers=1)) == contents(made)


def test_whatever_a_kill_leaves_is_made_good(tmp_path: Path, made: Path) -> None:
    out = tmp_path / "left"
    shutil.copytree(made, out)
    (out / "config").rename(out / "config.part")
    (out / "config.part" / "train.json").write_text("[[{")
    scene = out / "scenes" / "ACRE_train_000003_09.json"
    scene.rename(scene.with_suffix(".part"))
    picture = out / "images" / "ACRE_train_000003_09.png"
    picture.with_suffix(".part").write_bytes(picture.read_bytes()[:1000])
    picture.unlink()
    assert contents(write_acre(out, SPEC, workers=1)) == contents(made)


def test_a_complete_folder_is_left_alone_and_another_refused(made: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    write_acre(made, SPEC, 2)
    with pytest.raises(UserError, match="other settings"):
        write_acre(made, SyntheticAcre(regime="iid", train=4, val=1, test=3, seed=7))
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    with pytest.raises(UserError, match="something else"):
        write_acre(tmp_path, SPEC)
    with pytest.raises(UserError, match="workers=0"):
        write_acre(tmp_path / "new", SPEC, workers=0)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("regime", "IID"),
        ("size", "huge"),
        ("train", 0),
        ("test", 2.5),
        ("val", -1),
        ("seed", True),
    ],
)
def test_bad_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{field}=.*{value}") as error:
        SyntheticAcre(**{field: value})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_names_differ_where_the_data_do() -> None:
    specs = [SyntheticAcre(), SyntheticAcre(regime="sys"), SyntheticAcre(size="full")]
    specs += [SyntheticAcre(val=1), SyntheticAcre(test=1), SyntheticAcre(seed=1)]
    assert len({spec.default_name for spec in specs}) == 6
