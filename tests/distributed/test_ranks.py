"""Two ranks on gloo do what one does: gradients, curves, commands, shares."""

from __future__ import annotations

import faulthandler
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ivcl_fast.data.loader import Batch
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed import rendezvous
from ivcl_fast.errors import UserError
from ivcl_fast.models.weights import read_weights
from ivcl_fast.train import train as run_train
from ivcl_fast.training import checkpoint, loop
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.muon import Muon
from ivcl_fast.training.run_folder import check_folder
from tests.commands.test_train import SMALL
from tests.support.ranks import run_ranks
from tests.support.toy_stage import BATCH, PARALLELISM, assert_same_run, curve, make_stage, train


@pytest.mark.parametrize("parallelism", PARALLELISM)
@pytest.mark.parametrize("options", [{"grad_accum_steps": 2}, {"objective": "slot_attention"}])
def test_two_ranks_equal_one(tmp_path, parallelism, options):
    one = train(tmp_path / "one", options)
    two, _ = run_ranks(2, train, tmp_path / "two", options | PARALLELISM[parallelism])
    assert_same_run(two, tmp_path / "two", one, tmp_path / "one")


def train_compiled(folder: Path) -> dict[str, torch.Tensor]:
    """Train shards whose blocks are compiled, as by default on GPUs, and return their weights."""
    stage = make_stage(folder, shard=True)
    stage.model.compile_blocks(backend="aot_eager")
    stage.run()
    return checkpoint.gather_to_rank0(stage.model.state_dict())


def test_two_ranks_with_compiled_blocks_equal_one_without(tmp_path):
    one = train(tmp_path / "one", {})
    compiled, _ = run_ranks(2, train_compiled, tmp_path / "two")
    assert_same_run(compiled, tmp_path / "two", one, tmp_path / "one")


def train_in_bf16(folder: Path, shard: bool) -> list[tuple[int, float]]:
    """Train under autocast, and return the logged losses."""
    stage = make_stage(folder, shard=shard)
    stage.model.float()
    stage.execution = replace(stage.execution, amp=True)
    stage.run()
    assert {p.dtype for p in stage.model.parameters()} == {torch.float32}
    return curve(folder)


def test_shards_gathered_in_bf16_follow_the_curve_of_one_rank(tmp_path):
    one = train_in_bf16(tmp_path / "one", False)
    two, _ = run_ranks(2, train_in_bf16, tmp_path / "two", True)
    assert len(one) > 3
    for (step, a), (same_step, b) in zip(two, one, strict=True):
        assert step == same_step and math.isclose(a, b, rel_tol=0.02)


def train_without_a_clip(folder: Path, shard: bool) -> dict[str, torch.Tensor]:
    """Train on parts of one clip each, where the last rank's second batch lacks its last clip."""
    faulthandler.dump_traceback_later(60, exit=True)  # in place of a rank that waits for ever
    stage = make_stage(folder, shard=shard, grad_accum_steps=4, clips=3 * BATCH)
    whole = stage.loader.epoch

    def epoch(number: int, start_batch: int = 0) -> Iterator[Batch]:
        for at, batch in enumerate(whole(number, start_batch)):
            lacks = distributed.rank() == 1 and at == 1
            yield Batch(*(x[:-1] for x in batch.tensors)) if lacks else batch

    stage.loader.epoch = epoch
    stage.run()
    return checkpoint.gather_to_rank0(stage.model.state_dict())


def test_a_rank_whose_batch_lacks_a_clip_does_not_stop_the_others(tmp_path):
    """As where a video can no longer be decoded: shards communicate in every part of a batch."""
    folders = {shard: tmp_path / f"shard {shard}" for shard in (False, True)}
    replicas, shards = (
        run_ranks(2, train_without_a_clip, folder, shard)[0] for shard, folder in folders.items()
    )
    assert_same_run(shards, folders[True], replicas, folders[False])


def run_the_command(arguments: list[str]) -> list[bool]:
    """``python -m ivcl_fast.train``; for each stage, whether its model was to be sharded."""
    parallelize, sharded = loop.parallelize, []

    def recording(model, shard_by, amp):
        sharded.append(shard_by is not None)
        return parallelize(model, shard_by, amp)

    loop.parallelize = recording
    run_train(check_folder(parse(arguments)))
    return sharded


def test_the_command_does_on_two_ranks_what_it_does_on_one(tmp_path):
    """All stages, to finished models that any number of ranks can continue with."""
    write_dataset(tmp_path / "cater", SyntheticCater(train=12, val=6), workers=1)
    arguments = ["--data", f"cater:{tmp_path / 'cater'}", "--out", str(tmp_path), *SMALL]
    arguments += ["--pretrain-clips", "40", "--finetune-clips", "20", "--amp", "off"]
    arguments += ["--device", "cpu", "--no-compare-memoryless", "--no-pictures"]
    run_train(check_folder(parse([*arguments, "--name", "one"])))
    for name, flags in {"replicas": [], "shards": ["--shard"]}.items():
        command = [*arguments, "--name", name, *flags]
        sharded = run_ranks(2, run_the_command, command, connected=False)
        stages = "pretrain", "last-frame", "finetune"
        assert sharded == [[name == "shards"] * len(stages)] * 2
        for (step, a), (expected, b) in zip(
            curve(tmp_path / name), curve(tmp_path / "one"), strict=True
        ):
            assert step == expected and math.isclose(a, b, rel_tol=1e-3)
    one, two = (
        {k: v.shape for k, v in read_weights(tmp_path / name / "finetune").items()}
        for name in ("one", "shards")
    )
    assert one == two
    resumed = check_folder(parse(["--resume", str(tmp_path / "shards")]))
    run_train(resumed)  # it is finished: this only evaluates, with a single process


def muon_steps(shapes):
    """Return the weights of one rank alone, of replicas and of shards after three equal steps."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def shard(tensor):
        return distribute_tensor(tensor, mesh, [Shard(0)])

    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=draw) for shape in shapes]
    whole, replicas = ([torch.nn.Parameter(v.clone()) for v in values] for _ in range(2))
    shards = [torch.nn.Parameter(shard(v)) for v in values]
    options = dict(lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizers = [
        Muon(whole, **options), Muon(replicas, **options, replicated=True), Muon(shards, **options),
    ]  # fmt: skip
    for _ in range(3):
        for one, same, cut in zip(whole, replicas, shards, strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            same.grad, cut.grad = one.grad.clone(), shard(one.grad)
        for optimizer in optimizers:
            optimizer.step()
    shards = [cut.full_tensor() for cut in shards]
    return [[x.detach() for x in weights] for weights in (whole, replicas, shards)]


def test_muon_shared_by_ranks_is_muon():
    """Also where a rank has fewer matrices or rows than others, or none."""
    shapes = [(24, 8), (8, 24), (7, 5), (1, 6), (24, 8), (24, 8), (7, 5)]
    for whole, replicas, shards in run_ranks(3, muon_steps, shapes):
        for one, same, cut in zip(whole, replicas, shards, strict=True):
            assert torch.equal(one, same) and torch.equal(one, cut)


def test_local_batch_sizes(monkeypatch):
    assert distributed.local_batch_size(6, 3) == 6
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.local_batch_size(32, 2) == 8
    with pytest.raises(UserError, match="--batch-size: expected a multiple of 4 for 4 ranks"):
        distributed.local_batch_size(6)
    with pytest.raises(UserError, match=r"expected a multiple of 12 .* --grad-accum-steps 3"):
        distributed.local_batch_size(8, 3)


def test_a_rank_takes_its_own_gpu(monkeypatch):
    assert distributed.device_of_rank("auto") == "auto"
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.device_of_rank("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.device_of_rank("auto") == "cuda:1" == distributed.device_of_rank("cuda")
    assert distributed.device_of_rank("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert distributed.device_of_rank("auto") == "cuda:1"  # which is refused later
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # of this rank alone, as Slurm does it
    assert distributed.device_of_rank("auto") == "cuda:0"
    with pytest.raises(UserError, match="--device: expected auto"):
        distributed.device_of_rank("cuda:0")


def test_a_lone_world_size_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in distributed.TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UserError, match="WORLD_SIZE: expected ranks"),
        distributed.process_group(torch.device("cpu")),
    ):
        pass


@pytest.fixture
def store(monkeypatch) -> dist.Store:
    monkeypatch.setattr(rendezvous, "ANSWER_TIMEOUT", timedelta(seconds=0.05))
    return dist.HashStore()


def start(store: dist.Store, ranks: list[int], world_size: int = 3) -> list[dist.Store]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: rendezvous.unused_store(store, rank, world_size), ranks))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_ranks_share_what_earlier_attempts_did_not_write(store, order):
    for attempt in range(3):
        fresh = start(store, order)
        assert not any(part.check(["address"]) for part in fresh)
        fresh[0].set("address", str(attempt))
        assert all(part.get("address") == str(attempt).encode() for part in fresh)
