"""CATER's videos follow the published rules, and their labels agree with what is drawn."""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from ivcl_fast.data.formats import cater_labels as labels
from ivcl_fast.data.synthetic.cater.scene_file import frame_times, scene_dict
from ivcl_fast.data.synthetic.cater.video import Video, draw_camera_path, draw_video
from ivcl_fast.data.synthetic.easing import interpolate
from ivcl_fast.data.synthetic.placing import floor_axes
from ivcl_fast.data.synthetic.scene import CAMERA, FIRST_OFFSETS, LAMPS, SNITCH_TILT, TARGET
from tests.support.cater_rules import FRAMES, measure, simulate

ALL_FRAMES = np.arange(301)
VIDEOS = 40
LIFTING = ("_pick_place", "_contain")


@cache
def videos() -> list[Video]:
    return [draw_video(0, index) for index in range(VIDEOS)]


def inside(video: Video, a: int, b: int, frame: int) -> bool:
    """Whether ``a`` is in the cone ``b``, which counts as around it from when it is taken up."""
    holds = None
    for action, other, start, end in video.motion.movements[b]:
        if action == "_contain" and start <= frame:
            holds = other
        elif action == "_pick_place" and end <= frame:
            holds = None
    return holds is not None and (holds == a or inside(video, a, holds, frame))


def test_the_first_three_objects_are_given_and_the_others_vary() -> None:
    seen = set()
    for video in videos():
        first, *others = video.things
        assert 5 <= len(video.things) <= 10
        assert (first.shape, first.size, first.radius) == ("spl", "small", 0.3)
        assert (first.color, first.material) == ("gold", "metal")
        assert [(t.shape, t.radius) for t in others[:2]] == [("cone", 0.5), ("cone", 0.75)]
        for thing in others:
            seen |= {thing.shape, thing.size, thing.color, thing.material}
    assert len(seen) == 4 + 3 + 8 + 2


def test_objects_are_placed_with_margins() -> None:
    for video in videos():
        offsets = [FIRST_OFFSETS.get(t.shape, (0, 0, 0)) for t in video.things]
        places = video.motion.locations[0] - offsets
        radii = np.array([t.radius for t in video.things])
        np.testing.assert_allclose(places[:, 2], radii)
        assert np.abs(places[:, :2]).max() <= 3
        for a, b in combinations(range(len(places)), 2):
            apart = (places[a] - places[b])[:2]
            assert np.hypot(*apart) >= radii[a] + radii[b] + 0.25
            assert np.abs(apart @ floor_axes(TARGET)).min() >= 0.4


def test_movements_follow_one_another_in_slots() -> None:
    for video in videos():
        firsts, lasts = set(), set()
        for thing, movements in zip(video.things, video.motion.movements, strict=True):
            ends = -1
            for action, other, start, end in movements:
                assert (other is not None) == (action == "_contain")
                assert action != "_contain" or thing.shape == "cone"
                assert action != "_rotate" or thing.shape in ("cube", "cylinder", "spl")
                assert ends < start and (20 <= end - start <= 30 or end == 300)
                ends = end
                firsts.add(start)
                lasts.add(end)
        assert min(firsts) <= 10 and max(lasts) >= 270 and max(firsts) <= 280


def test_locations_are_linear_and_change_in_movements_only() -> None:
    for video in videos():
        locations = video.motion.locations
        for i, movements in enumerate(video.motion.movements):
            still = np.ones(300, dtype=bool)
            for action, _, start, end in movements:
                still[start:end] = False
                path = locations[start : end + 1, i]
                if action in LIFTING:
                    up, down = int(0.2 * len(path)), int(0.8 * len(path))
                    np.testing.assert_allclose(path[up : down + 1, 2], path[0, 2] + 2.0)
                    np.testing.assert_array_equal(
                        path[: up + 1, :2], path[:1, :2].repeat(up + 1, 0)
                    )
                    np.testing.assert_allclose(
                        path[down:, :2], path[-1:, :2].repeat(len(path) - down, 0)
                    )
                    path = path[up + 1 : down + 1]
                np.testing.assert_allclose(np.diff(path, 2, axis=0), 0.0, atol=1e-9)
                assert locations[start, i, 2] == pytest.approx(locations[end, i, 2])
            assert np.abs(np.diff(locations[:, i], axis=0)[still]).max(initial=0) == 0.0


def test_nothing_runs_into_anything() -> None:
    for video in videos():
        locations, radii = video.motion.locations, [t.radius for t in video.things]
        for a, b in combinations(range(len(radii)), 2):
            apart = np.linalg.norm(locations[:, a] - locations[:, b], axis=-1)
            for frame in np.flatnonzero(apart < radii[a] + radii[b] + 0.25 - 1e-9):
                under = video.motion.covered[frame, [a, b]].any()
                assert under or inside(video, a, b, frame) or inside(video, b, a, frame)


def test_what_is_inside_moves_with_its_cone() -> None:
    contained = 0
    for video in videos():
        for cone, movements in enumerate(video.motion.movements):
            for k, (action, other, _, end) in enumerate(movements):
                if action == "_contain":
                    assert video.things[cone].radius > video.things[other].radius
                    assert video.things[other].shape in ("cone", "sphere", "spl")
                    lifts = [m.start for m in movements[k + 1 :] if m.action in LIFTING]
                    held = slice(end, min(lifts, default=300) + 1)
                    both = video.motion.locations[held][:, [cone, other], :2]
                    np.testing.assert_allclose(both[:, 0], both[:, 1], atol=1e-9)
                    assert video.motion.covered[held, other].all()
                    contained += 1
    assert contained > VIDEOS


@pytest.mark.parametrize("count", [301, 38])
def test_labels_agree_with_what_is_covered(count: int) -> None:
    frames, hidden = frame_times(count), []
    for index, video in enumerate(videos()):
        scene = scene_dict(video, frames, index, (320, 240))
        names = [o["instance"] for o in scene["objects"]]
        found = {names.index(name) for name in labels.containers_at_end(scene)}
        assert found == set(np.flatnonzero(video.motion.covered[-1]))
        hidden.append(labels.hidden_at_end(scene))
        x, y, _ = video.motion.locations[-1, 0]
        assert labels.localize_label(scene) == 6 * (int(y + 3)) + int(x + 3)
    assert 0.2 < np.mean(hidden) < 0.55


def test_pictures_are_eased_between_the_same_places() -> None:
    largest = 0.0
    for video in videos()[:20]:
        scene, motion = video.scene(ALL_FRAMES), video.motion
        for i, movements in enumerate(motion.movements):
            still = np.ones(301, dtype=bool)
            for action, _, start, end in movements:
                still[start + 1 : end] = False
                if action == "_slide":
                    way = np.linalg.norm(motion.locations[end, i] - motion.locations[start, i])
                    off = scene.locations[start : end + 1, i] - motion.locations[start : end + 1, i]
                    largest = max(largest, np.linalg.norm(off, axis=-1).max() / way)
            np.testing.assert_allclose(
                scene.locations[still, i], motion.locations[still, i], atol=1e-9
            )
    assert 0.08 < largest < 0.16
    few = frame_times(38)
    np.testing.assert_array_equal(video.scene(few).locations, scene.locations[few])


def test_rotations_are_quarter_turns_about_y() -> None:
    for video in videos()[:20]:
        rotations = video.scene(ALL_FRAMES).rotations
        np.testing.assert_array_equal(rotations[..., 2], np.tile(video.thetas, (301, 1)))
        for i, movements in enumerate(video.motion.movements):
            tilt = SNITCH_TILT if i == 0 else (0.0, 0.0)
            turns = sum(action == "_rotate" for action, *_ in movements)
            np.testing.assert_allclose(rotations[0, i, :2], tilt)
            np.testing.assert_allclose(rotations[300, i, :2], (tilt[0], tilt[1] + turns * 1.57))


def test_videos_are_repeatable_and_do_not_depend_on_the_camera() -> None:
    still, moving = draw_video(3, 5), draw_video(3, 5, moving_camera=True)
    assert still.things == moving.things and still.motion.movements == moving.motion.movements
    np.testing.assert_array_equal(still.camera[0], moving.camera[0])
    np.testing.assert_array_equal(still.camera, draw_camera_path(3, 5, False))
    assert draw_video(3, 6).things != still.things and draw_video(4, 5).things != still.things


def test_cameras_and_lamps_differ_between_videos() -> None:
    cameras = np.concatenate([video.camera for video in videos()])
    assert 0.4 < np.abs(cameras - CAMERA).max() <= 0.5
    assert (np.ptp(cameras, axis=0) > 0.7).all()
    for name, place in LAMPS.items():
        lamps = np.stack([video.lamps[name] for video in videos()])
        assert 0.8 < np.abs(lamps - place).max() <= 1.0
        assert (np.ptp(lamps, axis=0) > 1.4).all()


def test_a_moving_camera_goes_round_and_rests_in_the_end() -> None:
    for index in range(20):
        path = draw_camera_path(0, index, True)
        assert path.shape == (301, 3)
        for x, y, z in path[30::30]:
            assert z in (8.0, 10.0, 12.0) and 10.0 in (abs(x), abs(y))
        np.testing.assert_allclose(path[270:], path[270:271].repeat(31, 0))
        assert np.abs(np.diff(path, axis=0)).max() < 2.0


def eased(times: list[int], values: list[float], frames: np.ndarray) -> np.ndarray:
    column = np.array(values, dtype=float)[:, None]
    track = np.zeros(len(times), dtype=int)
    return interpolate(track, np.array(times), column, 1, frames)[0, :, 0]


def bezier(t: float, times: list[float], values: list[float]) -> float:
    """The value at time t of a Bezier curve with these four points."""
    x0, x1, x2, x3 = times
    roots = np.roots([x3 - 3 * x2 + 3 * x1 - x0, 3 * (x2 - 2 * x1 + x0), 3 * (x1 - x0), x0 - t])
    u = next(r.real for r in roots if abs(r.imag) < 1e-7 and -1e-7 <= r.real <= 1 + 1e-7)
    y0, y1, y2, y3 = values
    return np.polyval([y3 - 3 * y2 + 3 * y1 - y0, 3 * (y2 - 2 * y1 + y0), 3 * (y1 - y0), y0], u)


@pytest.mark.parametrize(
    ("times", "values", "segment", "handles"),
    [
        # Horizontal handles of 1 / 2.5614 of the interval.
        ([0, 30], [1.0, 4.0], 0, ((11.7123, 1.0), (18.2877, 4.0))),
        # The key of a later movement is one frame after: the handle is that of five frames.
        ([0, 30, 31], [1.0, 4.0, 4.0], 0, ((11.7123, 1.0), (28.0479, 4.0))),
        # A key on the way has the mean slope of both sides, here 0.1 a frame.
        ([0, 30, 60], [0.0, 3.0, 6.0], 1, ((41.7123, 4.17123), (48.2877, 6.0))),
        # A handle does not go beyond a neighbour's value; here it would by 0.17.
        ([0, 30, 60], [0.0, 1.0, 6.0], 0, ((11.7123, 0.0), (18.2877, 0.0))),
        # An extremum is horizontal.
        ([0, 30, 60], [0.0, 3.0, 1.0], 1, ((41.7123, 3.0), (48.2877, 1.0))),
    ],
)
def test_segments_by_hand(times, values, segment, handles) -> None:
    ends = (times[segment], values[segment]), (times[segment + 1], values[segment + 1])
    points = ends[0], *handles, ends[1]
    frames = np.arange(times[segment], times[segment + 1] + 1)
    expected = [bezier(t, *map(list, zip(*points, strict=True))) for t in frames]
    np.testing.assert_allclose(eased(times, values, frames), expected, atol=2e-4)


def test_means_agree_with_a_direct_simulation() -> None:
    rng, frames = random.Random(2), np.arange(FRAMES)
    ours = [measure(scene_dict(draw_video(1, i), frames, i, (320, 240))) for i in range(30)]
    rules = [measure(simulate(rng)) for _ in range(30)]
    assert ours[0].keys() == rules[0].keys()
    for name in ours[0]:
        a, b = (np.array([row[name] for row in rows], dtype=float) for rows in (ours, rules))
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) <= 4 * error + 1e-9, name
    assert np.mean([row["movements, without no-ops"] for row in ours]) > 45
    assert np.mean([row["snitch uncovered (times)"] for row in ours]) > 0.5
