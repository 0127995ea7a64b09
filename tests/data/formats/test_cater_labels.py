"""The rules of CATER's labels, for scenes written by hand."""

from __future__ import annotations

import pytest

from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats import cater_labels as labels
from ivcl_fast.errors import UserError


def make_scene(objects: dict[str, tuple[str, list[float]]], **movements: list) -> dict:
    """Objects as {instance: (shape, last location)}; nine frames before the last one."""
    return {
        "objects": [
            {
                "shape": shape,
                "instance": name,
                "locations": {str(k): [0.5, 0.5, 0.3] if k < 9 else place for k in range(10)},
            }
            for name, (shape, place) in objects.items()
        ],
        "movements": {name: movements.get(name, []) for name in objects},
    }


@pytest.mark.parametrize(
    ("x", "y", "six", "four", "eight"),
    [
        (-2.99, -2.99, 0, 0, 0), (2.99, -2.99, 5, 3, 7), (-2.99, 2.99, 30, 12, 56),
        (2.99, 2.99, 35, 15, 63), (-0.01, 0.01, 20, 9, 35), (1.0, -1.0, 16, 6, 21),
        (3.0, 3.0, 35, 15, 63),
        (-3.01, -1.02, 6, 4, 16),  # placed at the border, with its mesh's offset
    ],
)  # fmt: skip
def test_localize_label(x: float, y: float, six: int, four: int, eight: int) -> None:
    scene = make_scene({"s": ("spl", [x, y, 0.3]), "c": ("cone", [0.0, 0.0, 0.5])})
    assert [labels.localize_label(scene, n) for n in (6, 4, 8)] == [six, four, eight]


def test_localize_label_outside_the_grid() -> None:
    with pytest.raises(UserError, match="position: expected x and y from -3 to 3"):
        labels.localize_label(make_scene({"s": ("spl", [3.2, 0.0, 0.3])}))


def test_classes_have_the_order_of_the_published_lists() -> None:
    order = dict(
        sphere="slide pick_place",
        spl="slide pick_place rotate",
        cylinder="pick_place slide rotate",  # unlike the others
        cube="slide pick_place rotate",
        cone="contain pick_place slide",
    )
    published = [(shape, f"_{name}") for shape, names in order.items() for name in names.split()]
    assert list(labels.ACTION_CLASSES) == published


def test_order_classes() -> None:
    assert len(labels.ACTION_CLASSES) == 14
    assert len(labels.ORDER_CLASSES) == len(set(labels.ORDER_CLASSES)) == 301
    # The pair of the first action with itself: "after" is "before" mirrored.
    first = labels.ACTION_CLASSES[0]
    assert labels.ORDER_CLASSES[:3] == (
        (first, first, "before"),
        (first, first, "during"),
        (first, labels.ACTION_CLASSES[1], "before"),
    )


@pytest.mark.parametrize(
    ("second", "order"),
    [((20, 30), "before"), ((19, 30), "during"), ((0, 10), "after"), ((0, 11), "during")],
)
def test_actions(second: tuple[int, int], order: str) -> None:
    scene = make_scene(
        {"s": ("spl", [0.0, 0.0, 0.3]), "b": ("cube", [1.0, 1.0, 0.3])},
        s=[["_slide", None, 10, 20], ["_no_op", None, 20, 25]],
        b=[["_rotate", None, *second]],
    )
    slide, rotate = ("spl", "_slide"), ("cube", "_rotate")
    assert labels.actions_present(scene) == [2, 10]
    assert [labels.ORDER_CLASSES[i] for i in labels.actions_order(scene)] == [
        (slide, rotate, order)
    ]
    scene["movements"] = dict(reversed(scene["movements"].items()))  # in which order is no matter
    assert [labels.ORDER_CLASSES[i] for i in labels.actions_order(scene)] == [
        (slide, rotate, order)
    ]


def test_a_repeated_action_is_before_itself() -> None:
    scene = make_scene(
        {"s": ("spl", [0.0, 0.0, 0.3])}, s=[["_slide", None, 0, 10], ["_slide", None, 10, 20]]
    )
    slide = ("spl", "_slide")
    assert [labels.ORDER_CLASSES[i] for i in labels.actions_order(scene)] == [
        (slide, slide, "before")
    ]


def test_hidden_and_visible_cones() -> None:
    objects = {
        "s": ("spl", [0.5, 0.5, 0.3]),
        "m": ("cone", [0.5, 0.5, 0.5]),
        "l": ("cone", [0.5, 0.5, 0.75]),
    }
    cover = {"m": [["_contain", "s", 0, 1]], "l": [["_contain", "m", 2, 3]]}
    released = {"m": cover["m"], "l": [*cover["l"], ["_pick_place", None, 4, 5]]}
    bare = {"m": [*cover["m"], ["_pick_place", None, 2, 3]], "l": []}
    moved_on = {"m": [*cover["m"], ["_contain", "x", 2, 3]], "l": []}
    for movements, hidden, visible in (
        (cover, True, 1), (released, True, 2), (bare, False, 2), (moved_on, False, 2),
        ({}, False, 2),
    ):  # fmt: skip
        scene = make_scene(objects, **movements)
        assert labels.hidden_at_end(scene) is hidden
        assert cater_frames.visible_cones(scene, 9) == [21] * visible
        assert cater_frames.visible_cones(scene, 9, 4) == [10] * visible


@pytest.mark.parametrize(
    ("place", "six", "four"), [([3.2, -9.0, 0.3], 5, 3), ([-3.2, 9.0, 0.3], 30, 12)]
)
def test_a_snitch_outside_the_floor_is_in_the_nearest_cell(place, six, four):
    scene = make_scene({"s": ("spl", place)})
    assert cater_frames.snitch_cell(scene, 9) == six
    assert cater_frames.snitch_cell(scene, 9, 4) == four
