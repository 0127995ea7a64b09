"""Runs Blender in a separate process that renders frames."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ivcl_fast.data.synthetic.blender.job import describe_job
from ivcl_fast.data.synthetic.blender.meshes import all_meshes
from ivcl_fast.data.synthetic.render import MACHINE, Rendering
from ivcl_fast.data.synthetic.scene import Scene
from ivcl_fast.errors import UserError

PYTHON = "IVCL_FAST_BLENDER"
"""Environment variable with a Python that has ``bpy``; by default the current one."""
_SCRIPT = Path(__file__).with_name("script.py")
_HAS_BPY = "import importlib.util, sys; sys.exit(importlib.util.find_spec('bpy') is None)"

_own: dict[int, Blender] = {}


class Blender:
    """A Blender process that renders scenes one after another.

    Raises :class:`UserError` if its Python has no ``bpy``, ends early or cannot render.

    Example::

        >>> with Blender(samples=128) as blender:
        ...     print(blender.render(scene, [0, 300], 320, 240).pictures.shape)
        (2, 240, 320, 3)
    """

    def __init__(self, samples: int, threads: int = 0) -> None:
        """Start the process, on the GPUs that Cycles finds, else on the CPU.

        Args:
            samples: paths per pixel; the published pictures of CATER have 128, of ACRE 512.
            threads: number of CPU threads; 0 for one per core.
        """
        self.samples = samples
        python = find_python()
        self.closed = False
        self._temporary = tempfile.TemporaryDirectory(
            prefix="ivcl-fast-blender-", ignore_cleanup_errors=True
        )
        self.folder = folder = Path(self._temporary.name)
        """Folder of the files that the two processes exchange."""
        write_meshes(folder / "meshes.npz")
        self._log = open(folder / "log", "w+")  # noqa: SIM115
        ours, theirs = os.pipe()
        arguments = [str(folder / "meshes.npz"), str(threads), str(theirs)]
        self._answers = os.fdopen(ours)
        self._process = subprocess.Popen(
            [python, "-P", str(_SCRIPT), *arguments],  # -P: its folder is not searched for modules
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[theirs],
            text=True,
            start_new_session=True,  # Ctrl-C reaches only this process, which ends Blender
        )
        os.close(theirs)
        self._answer()  # it has started

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def render(
        self,
        scene: Scene,
        frames: Sequence[int],
        width: int,
        height: int,
        *,
        pictures: bool = True,
        segments: bool = False,
        depth: bool = False,
    ) -> Rendering:
        """Like :func:`ivcl_fast.data.synthetic.render.render`, with Blender."""
        job = describe_job(scene, frames) | {
            "size": (width, height),
            "samples": self.samples,
            "folder": str(self.folder),
            "pictures": pictures,
            "numbers": segments or depth,
        }
        try:
            self._input.write(json.dumps(job) + "\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._ended() from None
        drawn: list[np.ndarray] = []
        numbers: list[tuple[np.ndarray, np.ndarray]] = []
        for k in range(len(job["camera"])):
            self._answer()
            if pictures:
                drawn.append(self._read(f"frame-{k}.png", read_picture))
            if segments or depth:
                numbers.append(vote(self._read(f"frame-{k}.npy", np.load), len(scene.things)))
        return Rendering(
            np.stack(drawn) if pictures else None,
            np.stack([index for index, _ in numbers]) if segments else None,
            np.stack([distance for _, distance in numbers]) if depth else None,
        )

    def close(self) -> None:
        """End the process."""
        if self.closed:
            return
        self.closed = True
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._log.close()
        self._temporary.cleanup()

    def __enter__(self) -> Blender:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, name: str, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        file = self.folder / name
        try:
            array = read(file)
            file.unlink()
        except (OSError, ValueError, EOFError):
            # Blender does not notice all errors of writing.
            self.close()
            raise UserError(
                f"Blender cannot write to {self.folder.parent}; is the disk full?"
            ) from None
        return array

    @property
    def _input(self) -> Any:
        return self._process.stdin

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith("\n"):
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise UserError(f"Blender: {answer['error']}")
        return answer

    def _ended(self) -> UserError:
        """Clean up after a process that ended early; return the error to raise."""
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        reason = f"signal {-status}" if status < 0 else lines[-1] if lines else f"status {status}"
        self.close()
        return UserError(f"Blender ended early: {reason}; the same command continues")


def read_picture(file: Path) -> np.ndarray:
    """Read a picture: uint8 RGB [height, width, 3]."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def vote(numbers: np.ndarray, things: int) -> tuple[np.ndarray, np.ndarray]:
    """Return segments and depth of pixels, given those of quarters [2 height, 2 width, 2]."""
    quarters = np.stack([numbers[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    index, depth = np.rint(quarters[..., 0]).astype(np.int16) - 1, quarters[..., 1]
    index[index == things] = MACHINE
    best = np.argmax((index[:, None] == index).sum(axis=1), axis=0)
    segments = np.take_along_axis(index, best[None], 0)[0]
    depth = np.where(depth > 0, depth, np.float32(np.inf))
    return segments, depth.mean(axis=0, where=index == segments)


def own_blender(samples: int) -> Blender:
    """Return this process's Blender process, started on the first call; both end together.

    With several worker processes on a CPU, each Blender has one thread.
    """
    running = _own.get(samples)
    if running is None or running.closed:
        running = _own[samples] = Blender(samples, threads=1)
        atexit.register(running.close)
    return running


def find_python() -> str:
    """Return the Python that has ``bpy``; raises :class:`UserError` if there is none."""
    python = os.environ.get(PYTHON) or sys.executable
    try:
        found = subprocess.run([python, "-c", _HAS_BPY], capture_output=True).returncode == 0
    except OSError as error:
        raise UserError(f"{PYTHON}: cannot run {python}: {error.strerror}") from None
    if not found:
        raise UserError(
            f"--renderer blender: {python} has no bpy: pip install 'ivcl_fast[blender]' on Python "
            f"3.11, or set {PYTHON} to a Python that has it"
        )
    return python


def write_meshes(file: Path) -> None:
    """Write the meshes as the arrays that the script reads."""
    arrays: dict[str, Any] = {}
    for name, mesh in all_meshes().items():
        arrays[f"{name}.vertices"], arrays[f"{name}.faces"] = mesh.vertices, mesh.faces
        if mesh.normals is not None:
            arrays[f"{name}.normals"] = mesh.normals
    np.savez(file, **arrays)
