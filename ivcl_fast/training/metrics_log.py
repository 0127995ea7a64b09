"""The record of a run's training: ``metrics.jsonl``, and TensorBoard or another viewer."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import write_text
from ivcl_fast.manifest import forget, read_recorded, record
from ivcl_fast.text import first_line
from ivcl_fast.training.viewers import VIEWERS, Show, Viewer, check_viewer

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes each record to ``metrics.jsonl`` and to a viewer, on rank 0 only.

    ``viewer`` is a key of :data:`~ivcl_fast.training.viewers.VIEWERS`; it starts with the first
    record, and ends when this is left as a context. Raises :class:`UserError` if its package is
    missing; so do methods that write if they cannot, for example on a full disk. A viewer that
    fails is left out from then on, with a warning.
    """

    def __init__(self, folder: Path, viewer: Viewer = "tensorboard") -> None:
        self.path = folder / "metrics.jsonl"
        self.folder = folder
        check_viewer(viewer)
        self._viewer = viewer
        self._show: Show | None = None
        self._started = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._leaving_out_a_viewer_that_fails():
            self._started.__exit__(*error)

    def rewind(self, stage: str, step: int) -> None:
        """Drop the records of ``stage`` after ``step``, which a resumed stage writes again."""
        if not distributed.is_main():
            return
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        with self._reporting_errors():
            forget(self.path)
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
            record(self.path)

    def read(self) -> list[dict[str, Any]]:
        """Read all records, without a line that a kill left unfinished.

        Raises :class:`UserError` for a file that was damaged.
        """
        try:
            lines = read_recorded(self.path).splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                continue
            try:
                found.append(json.loads(line))
                found[-1]["stage"], found[-1]["step"]
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{self.path}, line {number}: damaged: not a record; delete the line to go on "
                    "without it"
                ) from None
        return found

    def last_scores(self, stage: str) -> dict[str, float]:
        """Return what a stage measured last, rounded, without ``val_`` before the names."""
        measured = [r for r in self.read() if r["stage"] == stage and "loss" not in r]
        return {
            name.removeprefix("val_"): round(value, 4)
            for name, value in (measured[-1] if measured else {}).items()
            if isinstance(value, float)
        }

    def sync(self) -> None:
        """Flush the records to the disk, and note their checksum, before a checkpoint."""
        if distributed.is_main() and self.path.exists():
            with self._reporting_errors():
                record(self.path)

    def write(self, stage: str, step: int, clips: int, **values: float) -> None:
        """Append one record."""
        if not distributed.is_main():
            return
        line = {"stage": stage, "step": step, "clips": clips, **values}
        with self._reporting_errors(), open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        with self._leaving_out_a_viewer_that_fails():
            if self._show is None:
                self._show = self._started.enter_context(VIEWERS[self._viewer](self.folder))
            self._show(stage, clips, {f"{stage}/{name}": v for name, v in values.items()})

    @contextmanager
    def _leaving_out_a_viewer_that_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # packages of others raise what they like
            if self._viewer != "none":
                log.warning(
                    "--viewer %s: %s; going on without it, all records are in %s",
                    *(self._viewer, first_line(error), self.path),
                )
            self._viewer, self._show = "none", None

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror or error}; make room, and the "
                "same command continues from the last checkpoint"
            ) from None
