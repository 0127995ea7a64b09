"""Programs that show a run's records while it trains: TensorBoard, Weights & Biases, MLflow.

Their packages are imported only where ``--viewer`` asks for one. ``metrics.jsonl`` is written
anyway.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ivcl_fast.errors import UserError

Viewer = Literal["tensorboard", "wandb", "mlflow", "none"]
Show = Callable[[str, int, Mapping[str, float]], None]
"""Takes a stage, the clips seen in it, and values by ``stage/name``."""
PROJECT = "ivcl_fast"
"""Name of the project or experiment that runs belong to."""


@contextmanager
def tensorboard(folder: Path) -> Iterator[Show]:
    """Write to the run's folder ``tensorboard/``, a curve over clips for each value.

    ``torch.utils.tensorboard`` writes in a thread, which would end with a traceback on a full disk;
    this raises ``OSError``.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    place = folder / "tensorboard"
    place.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    with (place / name).open("ab") as file:
        records = RecordWriter(file)

        def append(**content: Any) -> None:
            records.write(Event(wall_time=time.time(), **content).SerializeToString())
            records.flush()

        def show(stage: str, clips: int, values: Mapping[str, float]) -> None:
            scalars = [Summary.Value(tag=name, simple_value=v) for name, v in values.items()]
            append(step=clips, summary=Summary(value=scalars))

        append(file_version="brain.Event:2")
        yield show


@contextmanager
def wandb(folder: Path) -> Iterator[Show]:
    """Start a run of Weights & Biases, as its environment variables say (``WANDB_MODE``, ...)."""
    package = importlib.import_module("wandb")
    run = package.init(project=PROJECT, name=folder.name, group=folder.name, dir=str(folder))
    stages: set[str] = set()

    def show(stage: str, clips: int, values: Mapping[str, float]) -> None:
        step = f"{stage}/clips"
        if stage not in stages:  # each stage counts its clips from 0, and a run's steps only rise
            stages.add(stage)
            run.define_metric(f"{stage}/*", step_metric=step)
        run.log({**values, step: clips})

    failed = 1  # the run's own context would print a traceback
    try:
        yield show
        failed = 0
    finally:
        run.finish(failed)


@contextmanager
def mlflow(folder: Path) -> Iterator[Show]:
    """Start a run of MLflow, as its environment variables say (``MLFLOW_TRACKING_URI``, ...)."""
    package = importlib.import_module("mlflow")
    package.set_experiment(PROJECT)

    def show(stage: str, clips: int, values: Mapping[str, float]) -> None:
        package.log_metrics({name: float(value) for name, value in values.items()}, step=clips)

    with package.start_run(run_name=folder.name):
        yield show


@contextmanager
def none(folder: Path) -> Iterator[Show]:
    """Write nothing."""
    yield lambda stage, clips, values: None


VIEWERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "none": none}
"""What starts each viewer for a run's folder, and ends it."""


def check_viewer(viewer: Viewer) -> None:
    """Raise :class:`UserError` if a viewer that is not part of the installation is missing."""
    if viewer not in ("wandb", "mlflow"):
        return
    try:
        importlib.import_module(viewer)
    except ImportError as error:
        raise UserError(
            f"--viewer: {viewer} cannot be imported ({error}); accepted: "
            f"tensorboard, none, or {viewer} after pip install {viewer}"
        ) from None
