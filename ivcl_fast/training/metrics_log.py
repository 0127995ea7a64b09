"""The record of a run's training: ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError
from ivcl_fast.files import write_text


class MetricsLog:
    """Writes each record to ``metrics.jsonl`` and to TensorBoard, on rank 0 only.

    Methods that write raise :class:`UserError` if they cannot, for example on a full disk.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self.folder = folder
        self._board: Any = None

    def rewind(self, stage: str, step: int) -> None:
        """Drop the records of ``stage`` after ``step``, which a resumed stage writes again."""
        if not distributed.is_main():
            return
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        with self._reporting_errors():
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def read(self) -> list[dict[str, Any]]:
        """Read all records, without a line that a kill left unfinished."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write(self, stage: str, step: int, clips: int, **values: float) -> None:
        """Append one record."""
        if not distributed.is_main():
            return
        record = {"stage": stage, "step": step, "clips": clips, **values}
        with self._reporting_errors():
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
            self._write_to_tensorboard(stage, clips, values)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror or error}; make room, and the "
                "same command continues from the last checkpoint"
            ) from None

    def _write_to_tensorboard(self, stage: str, clips: int, values: dict[str, float]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, clips)
