"""Ranks that are killed, stopped or out of disk: all end together, and runs can continue."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.group import Interrupted
from ivcl_fast.errors import UserError
from ivcl_fast.training import checkpoint
from tests.support.ranks import run_ranks
from tests.support.toy_stage import (
    PARALLELISM,
    Killed,
    assert_same_run,
    curve,
    make_model,
    make_stage,
    reconstruction_loss,
    train,
)


def train_until(folder: Path, options: dict, moment: int) -> None:
    """Train until all ranks are killed at step ``moment``."""

    def fault(step):
        if step == moment:
            raise Killed

    with pytest.raises(Killed):
        train(folder, options, fault)


@pytest.mark.parametrize("parallelism", PARALLELISM)
def test_checkpoints_continue_with_any_number_of_ranks(tmp_path, parallelism):
    """Two ranks, then one with a batch in as many parts, then two."""
    one = train(tmp_path / "one", {})
    options = PARALLELISM[parallelism]
    assert run_ranks(2, train_until, tmp_path / "moved", options, 6) == [None, None]
    train_until(tmp_path / "moved", {"grad_accum_steps": 2}, 11)
    moved, _ = run_ranks(2, train, tmp_path / "moved", options)
    assert_same_run(moved, tmp_path / "moved", one, tmp_path / "one")


def measure_and_save(folder: Path) -> None:
    """Measure shards at step 6, and save them right after it."""
    stage = make_stage(folder, shard=True)

    def validate():
        batch = next(stage.loader.epoch(0))
        with torch.no_grad():
            return {"measured": float(reconstruction_loss(stage.model, batch, 0))}

    stage.validate = validate
    stage.every = replace(stage.every, validations=2, save=6)
    stage.run()


def test_shards_that_were_just_measured_are_saved_with_all_of_their_state(tmp_path):
    run_ranks(2, measure_and_save, tmp_path / "run")
    saved = checkpoint.read(tmp_path / "run" / "checkpoints" / "step-00000006")
    assert {key.rsplit("/", 1)[0] for key in saved.optimizer} == {
        name for name, parameter in make_model().named_parameters() if parameter.requires_grad
    }


def stop_one(folder: Path, options: dict) -> tuple[int, int]:
    """SIGTERM to rank 1 alone, during step 7."""

    def fault(step):
        if step == 7 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        train(folder, options, fault)
    return stop.value.signum, checkpoint.latest(folder / "checkpoints").step


def test_one_stopped_rank_stops_all_at_the_same_step(tmp_path):
    options = {"shard": True, "optimizer": "muon"}
    stopped = run_ranks(2, stop_one, tmp_path / "cut", options)
    assert stopped == [(signal.SIGTERM, 8)] * 2
    resumed, _ = run_ranks(2, train, tmp_path / "cut", options)
    whole, _ = run_ranks(2, train, tmp_path / "whole", options)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def break_one(folder: Path) -> None:
    """A gradient of NaN on rank 1 alone, in step 9."""

    def broken(model, batch, step):
        value = reconstruction_loss(model, batch, step)
        if step == 9 and distributed.rank() == 1:
            value.register_hook(lambda gradient: gradient * math.nan)
        return value

    with pytest.raises(UserError, match="became nan"):
        make_stage(folder, broken).run()


def test_a_nan_on_one_rank_stops_all_before_a_checkpoint(tmp_path):
    assert run_ranks(2, break_one, tmp_path / "nan") == [None, None]
    saved = checkpoint.latest(tmp_path / "nan" / "checkpoints")
    assert saved.step == 5
    assert all(tensor.isfinite().all() for tensor in saved.model.values())


def fail(folder: Path, failing: list[int]) -> None:
    """Raise an error in step 7 on some ranks; what they would print is written to the folder."""

    def print_error(error):
        with open(folder / "printed", "a") as file:
            file.write(f"{error}\n")

    def fault(step):
        if step == 7 and distributed.rank() in failing:
            raise UserError("clip-3.avi: gone")

    distributed.print_error = print_error
    train(folder, {}, fault)


@pytest.mark.parametrize("failing", [[0], [1]], ids=str)
def test_an_error_of_one_rank_ends_all(tmp_path, failing):
    stops = run_ranks(2, fail, tmp_path / "run", failing)
    assert {stop.code for stop in stops} == {1, 2} and stops[failing[0]].code == 2
    assert (tmp_path / "run" / "printed").read_text() == "clip-3.avi: gone\n"


def die_alone(folder: Path) -> None:
    def fault(step):
        if step == 7 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder, {}, fault)


def test_a_dead_rank_ends_all_and_leaves_the_last_checkpoint(tmp_path):
    survivor, dead = run_ranks(2, die_alone, tmp_path / "cut")
    assert isinstance(dead, ChildProcessError)
    assert isinstance(survivor, SystemExit) and survivor.code == 1
    assert checkpoint.latest(tmp_path / "cut" / "checkpoints").step == 5
