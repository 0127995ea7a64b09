"""The file of events that TensorBoard shows, written by this thread.

The writer of ``torch.utils.tensorboard`` has a thread of its own, which a full disk ends with a
traceback.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Appends scalars to a new file of events in ``folder``, which it makes.

    Raises ``OSError`` if the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        self._records = RecordWriter(self._file)
        self._append(file_version="brain.Event:2")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append values by name."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        self._append(step=step, summary=Summary(value=scalars))

    def _append(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()
