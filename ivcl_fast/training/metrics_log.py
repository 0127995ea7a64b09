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
from ivcl_fast.files import fsync, read_bytes, write_text
from ivcl_fast.text import first_line
from ivcl_fast.training.viewers import VIEWERS, Show, Viewer, check_viewer

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes each record to ``metrics.jsonl`` and to a viewer, on rank 0 only.

    ``viewer`` is a key of :data:`~ivcl_fast.training.viewers.VIEWERS`; it starts with the first
    record and ends with the context. Raises :class:`UserError` if its package is missing, and if a
    record cannot be written, for example on a full disk. After an error of the viewer, training
    continues without it, with a warning.
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
        with self._viewer_errors_logged():
            self._started.__exit__(*error)

    def rewind(self, stage: str, step: int) -> None:
        """Drop the records of ``stage`` after ``step``, which a resumed stage writes again."""
        if not distributed.is_main():
            return
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        with self._reporting_errors():
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def read(self) -> list[dict[str, Any]]:
        """Read all records, without a line that a kill left unfinished.

        Raises :class:`UserError` for a line that is not a record.
        """
        if not self.path.exists():
            return []
        found = []
        for number, line in enumerate(read_bytes(self.path).splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                found.append(json.loads(line))
                found[-1]["stage"], found[-1]["step"]
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{self.path}, line {number}: expected a record, got other text; delete the "
                    "line to continue without it"
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
        """Flush the records to the disk, before a checkpoint."""
        if distributed.is_main() and self.path.exists():
            with self._reporting_errors():
                fsync(self.path)

    def write(self, stage: str, step: int, clips: int, **values: float) -> None:
        """Append one record."""
        if not distributed.is_main():
            return
        line = {"stage": stage, "step": step, "clips": clips, **values}
        with self._reporting_errors(), open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        with self._viewer_errors_logged():
            if self._show is None:
                self._show = self._started.enter_context(VIEWERS[self._viewer](self.folder))
            self._show(stage, clips, {f"{stage}/{name}": v for name, v in values.items()})

    @contextmanager
    def _viewer_errors_logged(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a viewer's package may raise anything
            if self._viewer != "none":
                log.warning(
                    "--viewer %s: %s; continuing without it, all records are in %s",
                    *(self._viewer, first_line(error), self.path),
                )
            self._viewer, self._show = "none", None

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: {error.strerror or error}; the same command continues from the last "
                "checkpoint"
            ) from None
