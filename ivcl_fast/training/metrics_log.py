"""Training logs: ``metrics.jsonl``, and TensorBoard or Weights & Biases."""

from __future__ import annotations

import importlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import errors_name, fsync, read_bytes, write_text
from ivcl_fast.text import first_line

log = logging.getLogger(__name__)

Viewer = Literal["tensorboard", "wandb", "none"]
Show = Callable[[str, int, Mapping[str, float | bytes]], None]
"""Takes a stage, its number of clips seen, and values by ``stage/name``; bytes are a GIF file."""
PROJECT = "ivcl_fast"
"""Weights & Biases project of the runs."""


class MetricsLog:
    """Writes each record to ``metrics.jsonl`` and to a viewer, on rank 0 only.

    The viewer starts at the first record and stops when the context exits. Raises
    :class:`UserError` if its package is missing, and ``OSError`` if a record cannot be written, for
    example on a full disk. If the viewer fails, training continues without it, with a warning.
    """

    def __init__(self, folder: Path, viewer: Viewer = "tensorboard") -> None:
        self.path = folder / "metrics.jsonl"
        self.folder = folder
        if viewer == "wandb":
            try:
                importlib.import_module(viewer)
            except ImportError as error:
                raise UserError(
                    f"--viewer: expected tensorboard, none, or {viewer} after pip install "
                    f"{viewer}, got {first_line(error)}"
                ) from None
        self._viewer = viewer
        self._show: Show | None = None
        self._started = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._viewer_errors_logged():
            self._started.__exit__(*error)

    def rewind(self, stage: str, step: int) -> None:
        """Drop the records of ``stage`` after ``step``, which the resumed stage writes again."""
        if distributed.is_main():
            kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def read(self) -> list[dict[str, Any]]:
        """Read all records, ignoring an incomplete last line."""
        if not self.path.exists():
            return []
        lines = read_bytes(self.path).splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith(b"\n")]
        except ValueError as error:
            raise UserError(f"{self.path}: expected records, got other text ({error})") from None

    def last_scores(self, stage: str) -> dict[str, float]:
        """Return a stage's last validation scores, rounded, without the prefix ``val_``."""
        measured = [r for r in self.read() if r["stage"] == stage and "loss" not in r]
        return {
            name.removeprefix("val_"): round(value, 4)
            for name, value in (measured[-1] if measured else {}).items()
            if isinstance(value, float)
        }

    def sync(self) -> None:
        """Flush the records to the disk, before a checkpoint."""
        if distributed.is_main() and self.path.exists():
            fsync(self.path)

    def write(self, stage: str, step: int, clips: int, **values: float) -> None:
        """Append one record."""
        if not distributed.is_main():
            return
        line = {"stage": stage, "step": step, "clips": clips, **values}
        with errors_name(self.path), open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.show(stage, clips, values)

    def show(self, stage: str, clips: int, values: Mapping[str, float | bytes]) -> None:
        """Send numbers and GIF files to the viewer, by name; on rank 0 only."""
        if self._viewer == "none":
            return
        with self._viewer_errors_logged():
            if self._show is None:
                self._show = self._started.enter_context(VIEWERS[self._viewer](self.folder))
            self._show(stage, clips, {f"{stage}/{name}": v for name, v in values.items()})

    @contextmanager
    def _viewer_errors_logged(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a viewer's package may raise anything
            log.warning(
                "--viewer %s: %s; continuing without it, all records are in %s",
                *(self._viewer, first_line(error), self.path),
            )
            self._viewer, self._show = "none", None


# --- Viewers --------------------------------------------------------------------------------------


@contextmanager
def tensorboard(folder: Path) -> Iterator[Show]:
    """Write curves over clips and films to the folder ``tensorboard/`` of the run."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def show(stage: str, clips: int, values: Mapping[str, float | bytes]) -> None:
            for name, value in values.items():
                if isinstance(value, bytes):  # ``add_video`` would need moviepy
                    image = Summary.Image(encoded_image_string=value, colorspace=3)
                    summary = Summary(value=[Summary.Value(tag=name, image=image)])
                    writer.file_writer.add_summary(summary, clips)
                else:
                    writer.add_scalar(name, value, clips)
            writer.flush()

        yield show


@contextmanager
def wandb(folder: Path) -> Iterator[Show]:
    """Start a Weights & Biases run, configured by its environment variables."""
    package = importlib.import_module("wandb")
    run = package.init(project=PROJECT, name=folder.name, group=folder.name, dir=str(folder))

    def show(stage: str, clips: int, values: Mapping[str, float | bytes]) -> None:
        # Each stage counts clips from 0, but wandb's own steps must increase.
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/clips")
        shown: dict[str, Any] = {f"{stage}/clips": clips}
        for name, value in values.items():
            shown[name] = value
            if isinstance(value, bytes):
                shown[name] = package.Video(io.BytesIO(value), format="gif")
        run.log(shown)

    failed = 1  # wandb's context manager would print a traceback
    try:
        yield show
        failed = 0
    finally:
        run.finish(failed)


VIEWERS = {"tensorboard": tensorboard, "wandb": wandb}
"""Context manager of each viewer."""
