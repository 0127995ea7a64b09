"""The loader gives exactly the right frames and labels, in a repeatable order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.loader import Batch, ClipLoader, StoreLoader
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.errors import UserError
from ivcl_fast.models.reference import select_frames
from tests.support.painted import media, numbers_of_rows, write_painted

FRAMES = [9, 20, 5, 12, 7, 30, 3, 8, 16, 11, 25]
BAD = {2, 6}
GOOD = [i for i in range(len(FRAMES)) if i not in BAD]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FrameStore:
    folder = tmp_path_factory.mktemp("videos")
    videos = [write_painted(folder / f"v{i}.avi", i, n) for i, n in enumerate(FRAMES)]
    for i in BAD:
        videos[i].write_bytes(b"")
    return build_store([media(path) for path in videos], folder / "store", 32, 8, "pyav", workers=1)


CLIPS = [Clip(f"c{i}", f"v{i}", i) for i in range(len(FRAMES))]


def make(store: FrameStore, clips=CLIPS, batch_size=2, num_frames=4, **options) -> ClipLoader:
    defaults = dict(num_classes=36, multi_label=False, training=False)
    return StoreLoader(store, clips, batch_size, num_frames, **defaults | options)


def frames_of_clips(batch: Batch) -> list[list[tuple[int, int]]]:
    """Read (video, frame) of every frame of every clip from the pixels."""
    return [numbers_of_rows(rows) for rows in batch.rows]


def same(found: list[Batch], expected: list[Batch]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(found, expected, strict=True)
        for name in ("rows", "labels", "clip_ids")
    )


# As in ACRE, the clips of a video share all frames but the last.
SHARED = [0, 7, 2]
ASKED = [
    Clip(f"v{v}q{i}", f"v{v}", v + i, (*SHARED, i)) for v in (1, 3, 5, 8, 9, 10) for i in (3, 8)
]


def asked(store: FrameStore, clips=ASKED, batch_size=4, **options) -> ClipLoader:
    return make(store, clips, batch_size, **{"share_frames": True} | options)


def each_alone(batches: list[Batch]) -> list[Batch]:
    """The same clips without shared frames."""
    return [Batch(select_frames(b.rows, b.frame_index), b.labels, b.clip_ids) for b in batches]


def test_frames_labels_and_ids_belong_together(store):
    batches = list(make(store).epoch(0))
    assert [b.clip_ids.tolist() for b in batches] == [[0, 1], [3, 4], [5, 7], [8, 9], [10]]
    for batch in batches:
        count = len(batch.clip_ids)
        assert batch.rows.shape == (count, 4, store.num_patches, store.patch_dim)
        assert batch.labels.dtype == batch.clip_ids.dtype == torch.int64
        assert batch.rows.dtype == torch.uint8
        assert batch.labels.tolist() == batch.clip_ids.tolist()
        for clip, frames in zip(batch.clip_ids.tolist(), frames_of_clips(batch), strict=True):
            assert frames == [(clip, i) for i in frame_ids(FRAMES[clip], 4)]


def test_clips_with_given_frames(store):
    """Given frames keep their order and are not jittered, such as ACRE's panels."""
    clips = [Clip("q6", "v1", 3, (0, 7, 2, 6)), Clip("q7", "v1", 4, (0, 7, 2, 19))]
    loader = make(store, clips, training=True)
    for epoch in range(2):
        (batch,) = loader.epoch(epoch)
        given = [clips[i] for i in batch.clip_ids.tolist()]
        assert frames_of_clips(batch) == [[(1, i) for i in clip.frames or ()] for clip in given]
        assert batch.labels.tolist() == [clip.label for clip in given]
    (last,) = make(store, clips, num_frames=1).epoch(0)
    assert frames_of_clips(last) == [[(1, 6)], [(1, 19)]]
    for other in (3, 5):
        with pytest.raises(UserError, match=rf"num_frames: expected 4, .* q6, got {other}"):
            make(store, clips, num_frames=other)


def test_shared_frames_are_read_once(store):
    loader = asked(store)
    batches = list(loader.epoch(0))
    assert loader.frames_per_clip == 5 / 2
    for batch in batches:
        assert batch.rows.shape[:2] == (2, 5)
        assert batch.frame_index is not None and batch.frame_index.shape == (2, 2, 4)
    assert same(each_alone(batches), list(asked(store, share_frames=False).epoch(0)))


def test_shuffled_clips_that_share_frames_stay_together(store):
    options = dict(seed=3, training=True)
    loader = asked(store, **options)
    epochs = [list(loader.epoch(epoch)) for epoch in range(3)]
    orders = [[i for b in batches for i in b.clip_ids.tolist()] for batches in epochs]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert sorted(order) == list(range(len(ASKED)))
        assert [i ^ 1 for i in order[::2]] == order[1::2]
    assert same(list(loader.epoch(1, 2)), epochs[1][2:])
    for batch in epochs[0]:
        (alone,) = each_alone([batch])
        expected = [(ASKED[i].media, ASKED[i].frames) for i in batch.clip_ids.tolist()]
        seen = [
            (f"v{ids[0][0]}", tuple(frame for _, frame in ids)) for ids in frames_of_clips(alone)
        ]
        assert seen == expected
    ranks = [
        list(asked(store, batch_size=2, rank=r, world_size=2, **options).epoch(0)) for r in (0, 1)
    ]
    for whole, *parts in zip(epochs[0], *ranks, strict=True):
        assert torch.equal(whole.rows, torch.cat([part.rows for part in parts]))
        assert torch.equal(whole.clip_ids, torch.cat([part.clip_ids for part in parts]))


@pytest.mark.parametrize(("parts", "share"), [(3, True), (8, False)])
def test_a_batch_in_parts(store, parts, share):
    (batch,) = asked(store, batch_size=12, share_frames=share).epoch(0)
    pieces = list(batch.split(parts))
    assert len(pieces) == min(parts, len(batch.rows))
    for x, *of_pieces in zip(batch.tensors, *(piece.tensors for piece in pieces), strict=True):
        assert torch.equal(x, torch.cat(of_pieces))
    for piece in pieces:
        assert len(each_alone([piece])[0].rows) == len(piece.clip_ids) == len(piece.labels)


def test_order_depends_on_seed_and_epoch_alone(store):
    options = dict(batch_size=3, training=True)
    loader = make(store, seed=5, **options)
    epochs = [list(loader.epoch(epoch)) for epoch in range(3)]
    for batches in epochs:
        assert sorted(i for b in batches for i in b.clip_ids.tolist()) == GOOD
    orders = {tuple(i for b in batches for i in b.clip_ids.tolist()) for batches in epochs}
    assert len(orders) == 3
    assert same(list(make(store, seed=5, **options).epoch(1)), epochs[1])
    one, other = (
        [clip for b in make(store, seed=s, **options).epoch(1) for clip in frames_of_clips(b)]
        for s in (5, 6)
    )
    assert [clip[0][0] for clip in one] != [clip[0][0] for clip in other]  # the order
    assert sorted(one) != sorted(other)  # and the jitter


MANY = [Clip(f"c{i}", "v5", 0) for i in range(100)]
"""Of one video."""


def test_which_clips_are_mirrored_depends_on_seed_and_epoch(store):
    """Half of them are."""
    options = dict(num_frames=1)
    (plain,) = make(store, MANY, 100, **options).epoch(0)

    def mirrored(seed: int, epoch: int) -> list[bool]:
        other = dict(seed=seed, mirror=lambda label: label + 1)
        (batch,) = make(store, MANY, 100, **other, **options).epoch(epoch)
        changed = [not torch.equal(*rows) for rows in zip(batch.rows, plain.rows, strict=True)]
        assert (batch.labels - plain.labels).tolist() == changed
        return changed

    drawn = [mirrored(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(35 <= sum(one) <= 65 for one in drawn)
    assert len({tuple(one) for one in drawn}) == 4 and mirrored(0, 0) == drawn[0]


def test_resuming_inside_an_epoch(store):
    loader = make(store, training=True)
    whole = list(loader.epoch(2))
    for start in range(len(loader) + 1):
        assert same(list(loader.epoch(2, start)), whole[start:])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "training"), [(1, False), (4, False), (3, True)])
def test_length_and_ranks(store, batch_size, world_size, training):
    """All ranks together read the clips of one process with the same global batch."""
    options = dict(training=training, seed=1)
    ranks = [
        make(store, batch_size=batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    batches = [list(loader.epoch(0)) for loader in ranks]
    assert [len(b) for b in batches] == [len(loader) for loader in ranks]
    single = make(store, batch_size=batch_size * world_size, **options)
    expected = [set(batch.clip_ids.tolist()) for batch in single.epoch(0)]
    found: list[set[int]] = [set() for _ in expected]
    for rank_batches in batches:
        for number, batch in enumerate(rank_batches):
            ids = set(batch.clip_ids.tolist())
            assert ids and not found[number] & ids
            found[number] |= ids
    assert found == expected
    if training:
        assert len({len(loader) for loader in ranks}) == 1
        assert all(len(b.rows) == batch_size for rank in batches for b in rank)
    else:
        assert sorted(i for ids in found for i in ids) == GOOD


def test_nothing_to_load(store):
    with pytest.raises(UserError, match="none of the videos"):
        make(store, clips=CLIPS[2:3])
    with pytest.raises(UserError, match=r"--batch-size: expected at most 9, .* got 20"):
        make(store, batch_size=10, world_size=2, training=True)


def test_several_labels(store):
    clips = [Clip(f"c{i}", f"v{i}", (i, 0, 13 - i % 3)) for i in range(len(FRAMES))]
    loader = make(store, clips, num_classes=14, multi_label=True, batch_size=9)
    (batch,) = loader.epoch(0)
    assert batch.labels.dtype == torch.float32 and batch.labels.shape == (9, 14)
    for row, clip in zip(batch.labels, GOOD, strict=True):
        assert set(row.nonzero().flatten().tolist()) == {clip, 0, 13 - clip % 3}
        assert set(row.tolist()) == {0.0, 1.0}


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_an_abandoned_epoch_ends_its_thread(store):
    batches: Iterator[Batch] = make(store, batch_size=1).epoch(0)
    next(batches)
    assert loader_threads()
    batches.close()  # type: ignore[attr-defined]
    assert not loader_threads()


def test_an_error_in_the_thread_is_raised_here(store, monkeypatch):
    def fail(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr(store, "batch", fail)
    with pytest.raises(OSError, match="disk on fire"):
        next(iter(make(store).epoch(0)))
    assert not loader_threads()
