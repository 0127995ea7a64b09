"""Plans of CATER videos are balanced, physically possible and correctly labelled."""

from __future__ import annotations

from functools import cache

import numpy as np

from ivcl_fast.data.formats import cater_labels as labels
from ivcl_fast.data.synthetic.cater.camera import static_camera
from ivcl_fast.data.synthetic.cater.planner import Plan, plan_video
from ivcl_fast.data.synthetic.cater.world import ACTIONS, CONTAINABLE
from ivcl_fast.data.synthetic.cater.write import scene_dict

ALL_FRAMES = np.arange(301)
FEW_FRAMES = np.rint(np.linspace(0, 300, 38)).astype(int)
PLANS = 300


@cache
def plans() -> list[Plan]:
    return [plan_video(0, index) for index in range(PLANS)]


def scene_of(plan: Plan, frames: np.ndarray = ALL_FRAMES) -> dict:
    return scene_dict(plan, static_camera(320, 240), frames, 0)


def test_final_cells_and_hidden_ends_are_balanced() -> None:
    scenes = [scene_of(plan, FEW_FRAMES) for plan in plans()]
    hidden = [labels.hidden_at_end(scene) for scene in scenes]
    assert 0.35 <= np.mean(hidden) <= 0.45
    counts = np.bincount([labels.localize_label(scene) for scene in scenes], minlength=36)
    expected = PLANS / 36
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 57.3  # 99th percentile at 35 degrees of freedom
    cones = [len(labels.visible_cones_at_end(s)) for s, h in zip(scenes, hidden, strict=True) if h]
    assert min(cones) >= 2
    assert np.mean(np.array(cones) >= 3) > 0.8


def test_hidden_snitches_are_carried() -> None:
    ways = []
    for plan in plans():
        if plan.covered[-1, 0]:
            hidden_since = np.flatnonzero(~plan.covered[:, 0])[-1] + 1
            ways.append(np.hypot(*(plan.locations[-1, 0] - plan.locations[hidden_since, 0])[:2]))
    assert np.mean(np.array(ways) > 1.0) > 0.7


def test_several_objects_move_at_once() -> None:
    moving = [
        (np.abs(np.diff(plan.locations, axis=0)).max(-1) > 1e-9)
        | (np.abs(np.diff(plan.yaw, axis=0)) > 1e-9)
        for plan in plans()
    ]
    assert np.mean([(m.sum(1) >= 2).mean() for m in moving]) > 0.4
    assert all(5 <= len(plan.things) <= 10 for plan in plans())


def test_planned_labels_agree_with_what_is_covered() -> None:
    for plan in plans():
        for frames in (ALL_FRAMES, FEW_FRAMES):
            scene = scene_of(plan, frames)
            assert labels.hidden_at_end(scene) == plan.covered[-1, 0]
            names = [o["instance"] for o in scene["objects"]]
            inside = {names.index(name) for name in labels.containers_at_end(scene)}
            assert inside == set(np.flatnonzero(plan.covered[-1]))


def test_what_is_inside_moves_with_its_cone() -> None:
    contained = 0
    for plan in plans():
        for cone, movements in enumerate(plan.movements):
            for k, movement in enumerate(movements):
                if movement.action != "_contain":
                    continue
                inner, outer = plan.things[movement.other], plan.things[cone]
                assert outer.shape == "cone" and inner.shape in CONTAINABLE
                assert outer.sized > inner.sized
                lifts = [m.start for m in movements[k + 1 :] if m.action != "_slide"]
                # A cone that is itself inside another has no movements of its own but slides.
                released = min((s for s in lifts), default=300)
                held = slice(movement.end, released + 1)
                np.testing.assert_allclose(
                    plan.locations[held, cone, :2],
                    plan.locations[held, movement.other, :2],
                    atol=1e-9,
                )
                assert plan.covered[movement.end : released, movement.other].all()
                contained += 1
    assert contained > PLANS // 2


def test_movements_are_possible_and_in_order() -> None:
    for plan in plans():
        assert (np.abs(plan.locations[..., :2]) < 3).all()
        for thing, movements in zip(plan.things, plan.movements, strict=True):
            ends = 0
            for action, other, start, end in movements:
                assert action in (*ACTIONS[thing.shape], "_no_op")
                assert (other is not None) == (action == "_contain")
                assert ends <= start < end <= 300
                ends = end
        # Nothing moves but in a movement.
        for i, movements in enumerate(plan.movements):
            still = np.ones(300, dtype=bool)
            for _, _, start, end in movements:
                still[start:end] = False
            assert np.abs(np.diff(plan.locations[:, i], axis=0)[still]).max(initial=0) < 1e-9


def test_nothing_runs_into_anything() -> None:
    for plan in plans():
        n = len(plan.things)
        apart = plan.locations[:, :, None] - plan.locations[:, None]
        footprint = np.array([t.footprint for t in plan.things])
        height = np.array([t.half_height for t in plan.things])
        touching = np.hypot(apart[..., 0], apart[..., 1]) < footprint[:, None] + footprint
        touching &= np.abs(apart[..., 2]) < height[:, None] + height
        touching &= ~(plan.covered[:, :, None] | plan.covered[:, None])
        touching[:, np.arange(n), np.arange(n)] = False
        for cone, movements in enumerate(plan.movements):
            for k, (action, other, start, end) in enumerate(movements):
                if action == "_contain":  # coming down on it
                    touching[start : end + 1, cone, other] = False
                    touching[start : end + 1, other, cone] = False
                    for later in movements[k + 1 :]:  # lifted off it
                        touching[later.start : later.end, cone, other] = False
                        touching[later.start : later.end, other, cone] = False
        assert not touching.any()
