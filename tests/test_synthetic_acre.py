"""Synthetic ACRE: rules that say what ACRE's say, panels one can read, files as ACRE's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.acre import (
    COLORS,
    CONTEXT,
    MATERIALS,
    QUERIES,
    TYPES,
    Acre,
    Attributes,
    Panel,
    Problem,
    Regime,
    media_name,
    object_table,
)
from ivcl_fast.data.synthetic.acre import SyntheticAcre, run_lengths, write_acre
from ivcl_fast.data.synthetic.acre_rules import covariation, draw_problem, find, solve
from ivcl_fast.data.synthetic.acre_scene import draw_scenes
from ivcl_fast.errors import UserError

REGIMES: tuple[Regime, ...] = ("iid", "comp", "sys")
SPEC = SyntheticAcre(regime="comp", train=4, val=1, test=3, seed=7)


# --- Rules ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tests() -> dict[str, list[Problem]]:
    problems: dict[str, list[Problem]] = {
        regime: [draw_problem(regime, "test", 0, n) for n in range(2000)] for regime in REGIMES
    }
    problems["sys train"] = [draw_problem("sys", "train", 0, n) for n in range(2000)]
    return problems


def shares(problems: list[Problem], what: str, values: Any) -> list[float]:
    counted = Counter(getattr(problem[q], what) for problem in problems for q in QUERIES)
    assert set(counted) == set(values)
    return [100 * counted[value] / (4 * len(problems)) for value in values]


# Of 16,000 problems each, of tests unless said, that ACRE's own generator made: shares of labels
# and of types, then what counting scores on them, by query and by problem (all in percent).
ACRES = {
    "iid": ((37.4, 26.7, 35.9), (36.8, 11.8, 24.8, 26.7), (46.5, 6.9)),
    "comp": ((35.0, 27.1, 37.9), (40.2, 12.1, 20.6, 27.1), (49.8, 8.2)),
    "sys": ((32.7, 29.1, 38.2), (33.6, 12.0, 25.3, 29.1), (43.1, 4.8)),
    "sys train": ((37.6, 24.7, 37.7), (47.1, 12.1, 16.1, 24.7), (55.6, 11.2)),
}


@pytest.mark.parametrize("regime", ACRES)
def test_statistics_and_scores_are_acres(regime: str, tests: dict[str, list[Problem]]) -> None:
    labels, types, counting = ACRES[regime]
    problems = tests[regime]
    assert shares(problems, "label", range(3)) == pytest.approx(labels, abs=1.5)
    assert shares(problems, "type", TYPES) == pytest.approx(types, abs=1.5)

    def score(answer: Any) -> tuple[float, float]:
        right = [
            [a == p[q].label for a, q in zip(answer(p), QUERIES, strict=True)] for p in problems
        ]
        return 100 * float(np.mean(right)), 100 * float(np.mean(np.all(right, axis=1)))

    assert score(solve) == (100.0, 100.0)
    assert score(covariation) == pytest.approx(counting, abs=1.5)


@pytest.mark.parametrize("regime", REGIMES)
def test_only_direct_questions_have_two_answers(
    regime: str, tests: dict[str, list[Problem]]
) -> None:
    asked = {(p[q].type, p[q].label) for p in tests[regime] for q in QUERIES}
    assert asked == {
        *(("direct", 0), ("direct", 2)),
        *(("indirect", 2), ("screen_off", 0), ("potential", 1)),
    }


def test_how_many_trials_light_up() -> None:
    def lit(regime: Regime, split: str) -> list[int]:
        problems = [draw_problem(regime, split, 3, n) for n in range(100)]
        return [sum(panel.light == "on" for panel in p[:6]) for p in problems]

    for split in ("train", "val", "test"):
        for regime in ("iid", "comp"):
            assert Counter(lit(regime, split)) == {3: 50, 4: 50}
        assert set(lit("sys", split)) == ({3} if split == "train" else {4})


def test_problems_are_built_as_acres(tests: dict[str, list[Problem]]) -> None:
    for problem in [p for regime in REGIMES for p in tests[regime]]:
        context, independent, added = problem[:6], problem[6:8], problem[8:]
        habituation = sorted((len(p.objects), p.light) for p in context[:3])
        assert habituation == [(1, "off"), (1, "on"), (2, "on")]
        assert all(panel.light == "no" for panel in problem[6:])
        assert all(len(panel.objects) == 1 and panel.ref is None for panel in independent)
        for panel in added:
            assert panel.ref is not None and context[panel.ref].light == "off"
            assert set(context[panel.ref].objects) < set(panel.objects)
        assert all(len(set(panel.objects)) == len(panel.objects) for panel in problem)
        assert set().union(*(p.objects for p in problem[6:])) <= set().union(
            *(p.objects for p in context)
        )


def test_trials_come_in_any_order(tests: dict[str, list[Problem]]) -> None:
    problems = tests["iid"]
    for panel in (*CONTEXT,):
        lit = sum(p[panel].light == "on" for p in problems)
        assert 800 < lit < 1500
    assert len({p[8].ref for p in problems}) == 6


def test_objects_of_all_kinds_take_part(tests: dict[str, list[Problem]]) -> None:
    for regime, count in (("iid", 48), ("comp", 24), ("sys", 48)):
        assert {o for p in tests[regime] for o in p[0].objects} == set(range(count))


def test_a_problem_is_a_function_of_its_arguments() -> None:
    problem = draw_problem("iid", "test", 0, 5)
    assert problem == draw_problem("iid", "test", 0, 5)
    others = [draw_problem("iid", "test", 0, 6), draw_problem("iid", "test", 1, 5)]
    others += [draw_problem("iid", "val", 0, 5), draw_problem("comp", "test", 0, 5)]
    assert all(problem != other for other in others)


def make(*context: tuple[str, tuple[int, ...]], asked: list[tuple[int, ...]]) -> Problem:
    return (
        *(Panel(objects, light) for light, objects in context),  # type: ignore[arg-type]
        *(Panel(objects, "no") for objects in asked),
    )


BLOCKED = make(
    ("on", (1,)),
    ("off", (2,)),
    ("on", (1, 2)),
    ("on", (1, 3)),  # says nothing of 3: 1 explains it
    ("on", (4, 5)),  # one of the two, at least
    ("on", (2, 6)),  # 6, as 2 is none
    asked=[(1,), (3,), (4, 5), (2,)],
)


def test_findings_by_hand() -> None:
    found = find(BLOCKED[:6])
    assert found.causes == {1, 6}
    assert found.joint == [(4, 5)]
    assert found.objects == {
        "direct": [1],
        "indirect": [6],
        "screen_off": [2],
        "potential": [3, 4, 5],
    }


def test_of_groups_that_hold_a_cause_only_the_smallest_count() -> None:
    trials = (("on", (1,)), ("off", (2,)), ("on", (1, 2)), ("on", (3, 4)), ("on", (3, 4, 5)))
    found = find(make(*trials, ("off", (6,)), asked=[])[:6])
    assert found.joint == [(3, 4)]
    assert found.objects["potential"] == [3, 4, 5]


def test_solvers_by_hand() -> None:
    assert solve(BLOCKED) == [2, 1, 2, 0]
    # Counting: 1 lit 3 of 3, 3 lit 1 of 1, 4 and 5 too; 2 lit 2 of 3.
    assert covariation(BLOCKED) == [2, 2, 2, 2]
    others = [(6,), (4,), (2, 3), (7,)]  # 7 was never seen
    assert solve((*BLOCKED[:6], *(Panel(o, "no") for o in others))) == [2, 1, 1, 1]


# --- Panels --------------------------------------------------------------------------------------


def small(scene: Any) -> np.ndarray:
    """As a model sees it."""
    return np.asarray(Image.fromarray(scene.picture).resize((64, 64)), dtype=int)


def test_on_off_and_none_can_be_told_at_64_pixels() -> None:
    table = object_table("iid", "test")
    means: dict[str, list[float]] = {"on": [], "off": [], "no": []}
    pinkness: dict[str, list[float]] = {"on": [], "off": [], "no": []}
    rng = np.random.default_rng(0)
    for n in range(10):
        problem = draw_problem("iid", "test", 1, n)
        for panel, scene in zip(problem, draw_scenes(problem, table, rng, 96, 72), strict=True):
            middle = small(scene)[24:44, 16:48]
            means[panel.light].append(float(np.median(middle)))
            pinkness[panel.light].append(float(np.median(middle[..., 0] - middle[..., 1])))
            assert scene.machine.any() == (panel.light != "no")
    assert min(means["on"]) > max(means["off"]) + 50
    assert max(pinkness["no"]) < 5 < 20 < min(pinkness["off"])


@pytest.mark.parametrize("light", ["on", "off", "no"])
def test_colours_and_materials_can_be_told_at_64_pixels(light: Any) -> None:
    """By a nearest mean over colour statistics of the object's pixels, taken in other places."""
    table = object_table("iid", "train")

    def looks(seed: int) -> dict[Attributes, np.ndarray]:
        rng = np.random.default_rng(seed)
        panels = [Panel((o,), light) for o in range(48)]
        found = {}
        for o, scene in enumerate(draw_scenes(panels, table, rng, 96, 72)):
            mask = Image.fromarray(scene.masks[0]).resize((64, 64))
            pixels = small(scene)[np.asarray(mask)]
            assert len(pixels) > 20
            found[table[o]] = np.quantile(pixels, (0.25, 0.5, 0.95), axis=0).ravel()
        return found

    known = [looks(seed) for seed in range(6)]
    means = {name: np.mean([k[name] for k in known], axis=0) for name in known[0]}
    right = []
    for name, look in looks(6).items():
        same_shape = [n for n in means if n[0] == name[0]]
        nearest = min(same_shape, key=lambda n: float(np.abs(means[n] - look).sum()))
        right.append(nearest == name)
    assert len(right) == 3 * len(COLORS) * len(MATERIALS)
    assert np.mean(right) > 0.9  # 1 in 16 by chance


@pytest.mark.parametrize("shape", range(3))
def test_metal_has_pale_lights_at_64_pixels(shape: int) -> None:
    table = object_table("iid", "train")
    panels = [Panel((o,), "off") for o in range(16 * shape, 16 * shape + 16)]
    pale = []
    for scene in draw_scenes(panels, table, np.random.default_rng(1), 96, 72):
        mask = np.asarray(Image.fromarray(scene.masks[0]).resize((64, 64)))
        pale.append(np.quantile(small(scene)[mask].min(axis=-1), 0.85))
    rubber, metal = np.reshape(pale, (8, 2)).T
    assert (metal - rubber).min() > 40


def test_bright_rims_over_the_lit_machine_do_not_wrap() -> None:
    table = object_table("iid", "train")
    yellow = [o for o, look in enumerate(table) if look.color == "yellow"]
    panels = [Panel((o,), "on") for o in yellow * 8]
    for scene in draw_scenes(panels, table, np.random.default_rng(0), 96, 72):
        assert scene.picture[..., 0].min() > 40  # nothing in the picture lacks red


def test_objects_stand_apart_and_are_seen() -> None:
    table = object_table("iid", "test")
    rng = np.random.default_rng(0)
    panels = [Panel(tuple(range(n, n + 6)), "on") for n in range(40)]
    for scene in draw_scenes(panels, table, rng, 96, 72):
        x, y = scene.places[:, :2].T
        apart = np.hypot(x[:, None] - x, y[:, None] - y) + 9 * np.eye(6)
        assert apart.min() >= 1.4  # twice the radius, and some
        assert np.abs(scene.places[:, :2]).max() < 2.8 - 0.6  # on the machine
        for outline, mask in zip(scene.outlines, scene.masks, strict=True):
            assert mask.sum() > 20
            assert not (mask & ~outline).any()
            assert not (mask & scene.machine_mask).any()
        assert np.sum(scene.masks, axis=0).max() == 1


# --- Files ---------------------------------------------------------------------------------------


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
        "from ivcl_fast.data.synthetic.acre import SyntheticAcre, run_lengths, write_acre\n"
        "spec = SyntheticAcre(regime='comp', train=4, val=1, test=3, seed=7)\n"
        "write_acre(Path(sys.argv[1]), spec, workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(out)],
        cwd=Path(__file__).parents[1],
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
