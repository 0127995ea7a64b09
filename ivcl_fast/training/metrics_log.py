"""What a run notes down while it trains."""

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
    """``metrics.jsonl`` and TensorBoard, in step; a resumed stage forgets what it will redo.

    Only rank 0 writes. Raises ``UserError`` where that cannot be, as on a full disk.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self.folder = folder
        self._board: Any = None

    def rewind(self, stage: str, step: int) -> None:
        """Drop records of ``stage`` beyond ``step``, and lines a kill left unfinished."""
        if not distributed.is_main():
            return
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        with self._writing():
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def read(self) -> list[dict[str, Any]]:
        """All whole records so far."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write(self, stage: str, step: int, clips: int, **values: float) -> None:
        """Append one record."""
        if not distributed.is_main():
            return
        record = {"stage": stage, "step": step, "clips": clips, **values}
        with self._writing():
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
            self._draw(stage, clips, values)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror or error}; make room, and the "
                "same command goes on from the last checkpoint"
            ) from None

    def _draw(self, stage: str, clips: int, values: dict[str, float]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, clips)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
