"""Two ranks on gloo do what one does: gradients, curves, checkpoints, stops and faults.

Weights are float64 here, so that rounding stands far below any mistake. AdamW divides by
``|g| + 1e-8``: it can blow rounding up to 2^-53 / 1e-8 = 1e-8 of a step of size ``lr``, which the
tolerance on weights allows for every step.
"""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ivcl_fast import IVCL, IVCLConfig, checkpoint, distributed
from ivcl_fast.data.feed import Batch
from ivcl_fast.data.synthetic.cater import SyntheticCater, write_cater
from ivcl_fast.errors import UserError
from ivcl_fast.masking import clip_seeds
from ivcl_fast.settings import parse, resolve
from ivcl_fast.train import train as run_train
from ivcl_fast.trainer import Interrupted, MetricsLog, NotFinite, Schedule, Stage, make_optimizers
from tests.ranks import run_ranks
from tests.test_train import SMALL

BATCH, STEPS, LR = 8, 12, 1e-2
ROUNDING = STEPS * LR * 2**-53 / 1e-8


class SharedFeed:
    """Six batches an epoch, a function of (epoch, batch) alone; a rank's share of each."""

    wait_seconds = 0.0

    def __len__(self):
        return 6

    def epoch(self, epoch, start_batch=0):
        mine = slice(distributed.rank(), None, distributed.world_size())
        for number in range(start_batch, len(self)):
            draw = torch.Generator().manual_seed(1000 * epoch + number)
            rows = torch.randint(256, (BATCH, 2, 4, 192), dtype=torch.uint8, generator=draw)
            ids = torch.arange(BATCH) + number * BATCH
            yield Batch(rows[mine], torch.zeros(BATCH)[mine], ids[mine])


def make_model(objective="ivcl") -> IVCL:
    torch.manual_seed(3)
    sizes = dict(image_size=16, embed_dim=8, num_heads=2, depth=1, temporal_depth=1)
    decoder = dict(decoder_dim=8, decoder_heads=2, decoder_depth=1)
    frames = dict(num_frames=2, num_query_frames=1)
    return IVCL(IVCLConfig(**sizes, **decoder, **frames, objective=objective)).double()


def loss(model, batch, step):
    return model(batch.rows, seed=clip_seeds(0, step, batch.clip_ids)).loss


def make_stage(
    folder: Path, loss=loss, *, objective="ivcl", shard=False, accum=1, optimizer="adamw"
):
    folder.mkdir(exist_ok=True)
    schedule = Schedule(
        BATCH * STEPS, LR, batch_size=BATCH, warmup_steps=2, accum=accum, optimizer=optimizer
    )
    return Stage(
        "toy", make_model(objective), SharedFeed(), loss, schedule, folder / "checkpoints",
        MetricsLog(folder), torch.device("cpu"), amp=False, shard=shard, log_every=3, save_every=5,
    )  # fmt: skip


def train(folder: Path, options: dict, fault=None) -> dict[str, torch.Tensor]:
    """Runs the stage and returns its whole weights (on rank 0); ``fault(step)`` may strike."""

    def struck(model, batch, step):
        if fault is not None:
            fault(step)
        return loss(model, batch, step)

    stage = make_stage(folder, struck, **options)
    stage.run()
    return checkpoint.whole_tensors(stage.model.state_dict())


def curve(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines) if "loss" in r]


def assert_same_run(found: dict, folder: Path, expected: dict, expected_folder: Path) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING, msg=name)
    for (step, a), (expected_step, b) in zip(curve(folder), curve(expected_folder), strict=True):
        assert step == expected_step
        assert math.isclose(a, b, rel_tol=2**-23)  # a step's loss is kept in float32


SPREAD = {"replicas": {}, "shards": {"shard": True}}


@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize(
    "options", [{}, {"accum": 2}, {"objective": "mae"}, {"objective": "joint"}]
)
def test_two_ranks_equal_one(tmp_path, spread, options):
    one = train(tmp_path / "one", options)
    two, _ = run_ranks(2, train, tmp_path / "two", options | SPREAD[spread])
    assert_same_run(two, tmp_path / "two", one, tmp_path / "one")


def run_the_command(arguments: list[str]) -> list[bool]:
    """``python -m ivcl_fast.train``; for each stage, whether its model was to be sharded."""
    spread, sharded = distributed.spread, []

    def noted(model, shard):
        sharded.append(shard)
        return spread(model, shard)

    distributed.spread = noted
    run_train(resolve(parse(arguments)))
    return sharded


def test_the_command_does_on_two_ranks_what_it_does_on_one(tmp_path):
    """Both stages, to finished models that any number of ranks goes on with."""
    write_cater(tmp_path / "cater", SyntheticCater(train=12, val=6), workers=1)
    arguments = ["--data", f"cater:{tmp_path / 'cater'}", "--out", str(tmp_path), *SMALL]
    arguments += ["--pretrain-clips", "40", "--finetune-clips", "20", "--amp", "off"]
    arguments += ["--device", "cpu", "--no-compare-memoryless", "--no-pictures"]
    run_train(resolve(parse([*arguments, "--name", "one"])))
    for name, flags in {"replicas": [], "shards": ["--shard"]}.items():
        command = [*arguments, "--name", name, *flags]
        sharded = run_ranks(2, run_the_command, command, connected=False)
        assert sharded == [[name == "shards"] * 2] * 2
        for (step, a), (expected, b) in zip(
            curve(tmp_path / name), curve(tmp_path / "one"), strict=True
        ):
            assert step == expected and math.isclose(a, b, rel_tol=1e-3)
    one, two = (
        {k: v.shape for k, v in checkpoint.read_weights(tmp_path / name / "finetune").items()}
        for name in ("one", "shards")
    )
    assert one == two
    run_train(resolve(parse(["--resume", str(tmp_path / "shards")])))  # finished: measures again


def one_muon_step(shapes):
    """Muon on whole matrices, and on the same cut in pieces, after equal gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from ivcl_fast.sharding import ShardedMuon

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    draw = torch.Generator().manual_seed(0)
    results = []
    for shape in shapes:
        value = torch.randn(shape, generator=draw)
        whole = torch.nn.Parameter(value.clone())
        cut = torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)]))
        options = dict(lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        optimizers = torch.optim.Muon([whole], **options), ShardedMuon([cut], **options)
        for _ in range(3):
            whole.grad = torch.randn(shape, generator=draw)
            cut.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step()
        results.append((whole.detach(), cut.detach().full_tensor()))
    return results


def test_muon_on_shards_is_muon():
    for results in run_ranks(2, one_muon_step, [(24, 8), (8, 24), (7, 5), (1, 6)]):
        assert all(torch.equal(whole, cut) for whole, cut in results)


def test_replicas_and_shards_learn_alike_with_muon(tmp_path):
    replicas, _ = run_ranks(2, train, tmp_path / "a", {"optimizer": "muon"})
    shards, _ = run_ranks(2, train, tmp_path / "b", {"optimizer": "muon", "shard": True})
    assert all(torch.equal(shards[name], value) for name, value in replicas.items())
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


class Killed(BaseException):
    """Stands for kill -9: nothing runs after it that would not run then."""


def kill_at(moment):
    def fault(step):
        if step == moment:
            raise Killed

    return fault


def train_until(folder: Path, options: dict, moment: int) -> None:
    """Runs until it is killed at step ``moment``, on all ranks."""
    with pytest.raises(Killed):
        train(folder, options, kill_at(moment))


@pytest.mark.parametrize("spread", SPREAD)
def test_checkpoints_go_on_with_any_number_of_ranks(tmp_path, spread):
    """Two ranks, then one, then two."""
    one = train(tmp_path / "one", {})
    options = SPREAD[spread]
    assert run_ranks(2, train_until, tmp_path / "moved", options, 6) == [None, None]
    train_until(tmp_path / "moved", {}, 11)
    moved, _ = run_ranks(2, train, tmp_path / "moved", options)
    assert_same_run(moved, tmp_path / "moved", one, tmp_path / "one")


def stop_one(folder: Path, options: dict) -> tuple[str, int]:
    """SIGTERM to rank 1 alone, during step 7."""

    def fault(step):
        if step == 7 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        train(folder, options, fault)
    return str(stop.value), checkpoint.latest(folder / "checkpoints").step


@pytest.mark.parametrize("spread", SPREAD)
def test_one_stopped_rank_stops_all_at_the_same_step(tmp_path, spread):
    options = SPREAD[spread] | {"optimizer": "muon"}
    stopped = run_ranks(2, stop_one, tmp_path / "cut", options)
    assert stopped == [("SIGTERM", 9)] * 2  # the vote of the step it came in ends with the next
    resumed, _ = run_ranks(2, train, tmp_path / "cut", options)
    whole, _ = run_ranks(2, train, tmp_path / "whole", options)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def stop_all_from_a_terminal(folder: Path, times: int) -> str:
    """SIGINT to every rank so many times, during step 7."""

    def fault(step):
        if step == 7:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stop:
        train(folder, {}, fault)
    return str(stop.value)


def test_ranks_hear_of_a_ctrl_c_twice(tmp_path):
    """From the terminal and from torchrun: that is one, a second stops at once."""
    assert run_ranks(2, stop_all_from_a_terminal, tmp_path / "one", 2) == ["SIGINT"] * 2
    assert checkpoint.latest(tmp_path / "one" / "checkpoints").step == 9
    killed = run_ranks(2, stop_all_from_a_terminal, tmp_path / "two", 3)
    assert all(isinstance(rank, ChildProcessError) for rank in killed)
    assert checkpoint.latest(tmp_path / "two" / "checkpoints").step == 5


def break_one(folder: Path, where: str) -> None:
    """A NaN on rank 1 alone, in step 9."""

    def broken(model, batch, step):
        value = loss(model, batch, step)
        if step == 9 and distributed.rank() == 1:
            if where == "loss":
                return value * math.nan
            value.register_hook(lambda gradient: gradient * math.nan)
        return value

    with pytest.raises(NotFinite):
        make_stage(folder, broken).run()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_on_one_rank_stops_all_before_a_checkpoint(tmp_path, where):
    assert run_ranks(2, break_one, tmp_path / "nan", where) == [None, None]
    saved = checkpoint.latest(tmp_path / "nan" / "checkpoints")
    assert saved.step == 5
    assert all(tensor.isfinite().all() for tensor in saved.model.values())


def train_on_a_full_disk(folder: Path) -> dict[str, torch.Tensor]:
    """No checkpoint of step 5 can be written."""
    write = checkpoint.write

    def full(final, *arguments):
        if final.name == "step-00000005":
            raise OSError("No space left on device")
        write(final, *arguments)

    checkpoint.write = full
    return train(folder, {})


def test_a_full_disk_of_rank_0_stops_nobody(tmp_path):
    one = train(tmp_path / "one", {})
    full, _ = run_ranks(2, train_on_a_full_disk, tmp_path / "full")
    assert_same_run(full, tmp_path / "full", one, tmp_path / "one")
    saved = [path.name for path in checkpoint.list_steps(tmp_path / "full" / "checkpoints")]
    assert saved == ["step-00000010", "step-00000012"]


def fail(folder: Path, failing: list[int]) -> None:
    """A mistake met in step 7 by some ranks; what is told of it lands in the folder."""

    def tell(error):
        with open(folder / "told", "a") as file:
            file.write(f"{error}\n")

    def fault(step):
        if step == 7 and distributed.rank() in failing:
            raise UserError("clip-3.avi: gone")

    distributed.tell = tell
    train(folder, {}, fault)


@pytest.mark.parametrize(
    ("failing", "status"), [([0], [2, 1]), ([1], [1, 2]), ([0, 1], [2, 2])], ids=str
)
def test_a_mistake_is_told_once_whoever_meets_it(tmp_path, failing, status):
    stops = run_ranks(2, fail, tmp_path / "run", failing)
    assert [stop.code for stop in stops] == status
    assert (tmp_path / "run" / "told").read_text() == "clip-3.avi: gone\n"


def read_elsewhere(folder: Path) -> int:
    """Rank 1 looks for the checkpoints in a folder of its own."""
    found = checkpoint.latest(folder / str(distributed.rank()))
    return found.step if found else 0


def test_a_run_folder_that_one_machine_does_not_see(tmp_path):
    model = make_model()
    checkpoint.save(tmp_path / "0", 3, model, make_optimizers(model, Schedule(1)), {})
    assert [stop.code for stop in run_ranks(2, read_elsewhere, tmp_path)] == [1, 2]


def die_alone(folder: Path) -> None:
    def fault(step):
        if step == 7 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder, {}, fault)


def test_a_run_goes_on_after_a_rank_died(tmp_path):
    survivor, dead = run_ranks(2, die_alone, tmp_path / "cut")
    assert isinstance(dead, ChildProcessError)
    assert isinstance(survivor, SystemExit) and survivor.code == 1
    resumed, _ = run_ranks(2, train, tmp_path / "cut", {})
    whole, _ = run_ranks(2, train, tmp_path / "whole", {})
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def take_turns(folder: Path) -> list[str]:
    with distributed.in_turn(), open(folder / "order", "a") as file:
        file.write(f"{distributed.rank()}\n")
    return (folder / "order").read_text().split()


def test_rank_0_goes_first(tmp_path):
    first, *others = run_ranks(2, take_turns, tmp_path)
    assert first == others[0] == ["0", "1"]


def test_shares_of_a_batch(monkeypatch):
    assert distributed.share(6, 3) == 6
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.share(32, 2) == 8
    with pytest.raises(UserError, match="--batch-size: 6 clips do not split evenly over 4 ranks; "):
        distributed.share(6)
    with pytest.raises(UserError, match="--accum 3 parts; accepted: a multiple of 12"):
        distributed.share(8, 3)


def test_a_rank_takes_its_own_gpu(monkeypatch):
    assert distributed.device_name("auto") == "auto"
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.device_name("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.device_name("auto") == "cuda:1" == distributed.device_name("cuda")
    assert distributed.device_name("cpu") == "cpu"
    with pytest.raises(UserError, match="'cuda:0' with 4 ranks"):
        distributed.device_name("cuda:0")


def test_a_lone_world_size_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in distributed.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UserError, match=r"WORLD_SIZE is 2 but RANK, LOCAL_RANK, .* torchrun"),
        distributed.group(torch.device("cpu")),
    ):
        pass


def test_one_process_needs_no_group():
    model = make_model()
    assert distributed.spread(model, shard=True) is model
    assert type(make_optimizers(model, Schedule(1, optimizer="muon"))[1]) is torch.optim.Muon
    with distributed.group(torch.device("cpu")), distributed.in_turn():
        assert distributed.is_main() and not dist.is_initialized()
