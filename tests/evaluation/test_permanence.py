"""Measures of slots: segments, owners and hidden positions, by hand and against libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, jaccard_score
from torch import Tensor

from ivcl_fast.evaluation import permanence
from ivcl_fast.evaluation.permanence import HiddenRun
from ivcl_fast.evaluation.segmentation import adjusted_rand_index, mean_best_overlap

NAN = float("nan")


def test_hidden_runs_begin_after_an_object_was_seen() -> None:
    visible = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0]]).bool().T
    assert permanence.hidden_runs(visible) == [
        HiddenRun(0, 2, 3, 4), HiddenRun(0, 5, 5, None),
        HiddenRun(2, 1, 1, 2), HiddenRun(2, 3, 5, None),
    ]  # fmt: skip


def test_a_slot_owns_one_object_that_is_mostly_its_own() -> None:
    shared = torch.tensor(
        [
            [[5, 1, 0], [0, 6, 1]],  # one each
            [[5, 0, 0], [6, 0, 1]],  # slot 0 draws both: it owns the larger part
            [[1, 0, 7], [0, 2, 1]],  # the background has object 0
            [[0, 0, 0], [0, 0, 3]],  # object 0 is hidden
        ]
    ).double()
    owners = permanence.owner_slots(shared, slots=2)
    assert owners.tolist() == [[0, 1], [-1, 0], [-1, 1], [-1, -1]]


def test_reidentification_of_random_owners_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    visible, owners = rng.random((60, 8)) < 0.6, rng.integers(-1, 3, (60, 8))
    owners[~visible] = -1
    expected = []
    for seen, slots in zip(visible.T, owners.T, strict=True):
        text = "".join(
            "." if s and o < 0 else str(o) if s else " " for s, o in zip(seen, slots, strict=True)
        )
        for place, character in enumerate(text):
            if character != " " and text[place - 1 : place] == " " and text[:place].strip():
                before = text[:place].replace(" ", "").replace(".", "")[-1:]
                after = text[place:].partition(" ")[0].replace(".", "")[:1]
                expected.append(before != "" and before == after)
    seen = torch.tensor(visible)
    found = [
        permanence.is_reidentified(torch.tensor(owners), seen, run)
        for run in permanence.hidden_runs(seen)
        if run.reappears is not None
    ]
    assert found == expected and 0 < sum(found) < len(found)


def test_boxes_of_segments() -> None:
    found = torch.full((2, 4, 5), -1)
    found[0, 1:3, 2:5], found[1, 0, 0], found[1, 3, 1] = 1, 0, 0
    boxes = permanence.segment_boxes(found, 2)
    torch.testing.assert_close(
        boxes,
        torch.tensor([[[NAN] * 4, [2, 1, 5, 3]], [[0, 0, 2, 4], [NAN] * 4]]).double(),
        equal_nan=True,
    )


def test_a_slot_that_draws_nothing_is_where_it_was() -> None:
    boxes = torch.full((5, 2, 4), NAN)
    boxes[:, 1] = 9
    boxes[0, 0], boxes[2, 0] = 1, 2
    owners = torch.tensor([[0], [-1], [-1], [-1], [-1]])
    held = permanence.held_boxes(boxes, owners, HiddenRun(0, 1, 4, None))
    assert held[:, 0].tolist() == [1, 2, 2, 2]
    nobody = torch.full((5, 1), -1)
    assert permanence.held_boxes(boxes, nobody, HiddenRun(0, 1, 4, None)).isnan().all()


def test_overlap_of_boxes_is_that_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 12, (2, 50, 2, 2)), axis=2)
    corners[:, :, 1] += 1
    ours = permanence.box_overlap(*torch.tensor(corners.reshape(2, 50, 4)).double())
    for overlap, pair in zip(ours, corners.swapaxes(0, 1), strict=True):
        masks = np.zeros((2, 13, 13), bool)
        for mask, ((left, top), (right, bottom)) in zip(masks, pair, strict=True):
            mask[top:bottom, left:right] = True
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert overlap.item() == pytest.approx(expected, abs=1e-6)


def test_precision_and_distance_by_hand() -> None:
    overlap = torch.tensor([0.0, 0.1, 0.22, 0.9]).double()
    assert permanence.average_precision(overlap).tolist() == pytest.approx([0, 0, 0.6, 1])
    found = torch.tensor([[0, 0, 2, 2], [NAN] * 4]).double()
    true = torch.tensor([[3, 4, 5, 6], [4, 4, 6, 8]]).double()
    assert permanence.centre_distance(found, true, 10).tolist() == pytest.approx([0.5, 0.1])
    assert permanence.box_overlap(found, true).tolist() == [0, 0]


PICTURES, PIXELS, TOLERANCE = 20, 60, dict(rtol=0, atol=1e-6)


def drawn(count: int, least: int = 0) -> Tensor:
    """Random segments ``[M, P]`` from ``least`` on, ``count`` of them."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(least, least + count, (PICTURES, PIXELS), generator=generator)


def test_ari_is_scikit_learns() -> None:
    found, true = drawn(5), drawn(4, least=-1)
    expected = [adjusted_rand_score(t[t >= 0], f[t >= 0]) for f, t in zip(found, true, strict=True)]
    everywhere = [adjusted_rand_score(t, f) for f, t in zip(found, true, strict=True)]
    for ours, theirs in (
        (adjusted_rand_index(found, true), expected),
        (adjusted_rand_index(found, true + 1), everywhere),
    ):
        torch.testing.assert_close(ours, torch.tensor(theirs).double(), **TOLERANCE)
    whole = adjusted_rand_index(found.flatten()[None], true.flatten()[None] + 1).item()
    assert whole == pytest.approx(adjusted_rand_score(true.flatten(), found.flatten()), abs=1e-6)


def test_segments_that_swap_objects_are_right_in_frames_and_wrong_in_the_video() -> None:
    true = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    found = torch.tensor([[3, 3, 5, 5], [5, 5, 3, 3]])
    assert adjusted_rand_index(found, true).tolist() == [1, 1]
    # 4 of 28 pairs are together in both, 12 in each: (4 - 36/7) / (12 - 36/7).
    whole = adjusted_rand_index(found.view(1, -1), true.view(1, -1))
    torch.testing.assert_close(whole, torch.tensor([-1 / 6]).double())
    assert mean_best_overlap(found, true).tolist() == [1, 1]
    assert mean_best_overlap(found.view(1, -1), true.view(1, -1)).tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("true", [[-1, -1, -1, -1], [-1, 2, 2, 2], [-1, -1, -1, 0]])
def test_fewer_than_two_objects_have_no_ari(true: list[int]) -> None:
    assert adjusted_rand_index(torch.tensor([[0, 1, 1, 0]]), torch.tensor([true])).isnan().all()


def test_best_overlap_is_the_best_jaccard_score() -> None:
    found, true = drawn(5), drawn(4, least=-1)
    expected = [
        np.mean([max(jaccard_score(t == o, f == s) for s in range(5)) for o in range(3)])
        for f, t in zip(found.numpy(), true.numpy(), strict=True)
    ]
    ours = mean_best_overlap(found, true)
    torch.testing.assert_close(ours, torch.tensor(expected).double(), **TOLERANCE)
    assert mean_best_overlap(found, torch.full_like(true, -1)).isnan().all()
