"""Runs Blender in a separate process that renders frames of a scene."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
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


def render(scene: Scene, frames: Sequence[int], *size: int, **options: Any) -> Rendering:
    """Like :func:`ivcl_fast.data.synthetic.render.render`, with Blender; see :func:`render_all`."""
    (drawn,) = render_all([(scene, frames)], *size, **options)
    return drawn


def render_all(
    scenes: Sequence[tuple[Scene, Sequence[int]]],
    width: int,
    height: int,
    *,
    samples: int,
    threads: int = 1,
    pictures: bool = True,
    segments: bool = False,
    depth: bool = False,
) -> list[Rendering]:
    """Render frames of several scenes in one Blender process, which takes a second to start.

    It uses the GPUs that Cycles finds, else the CPU.

    Args:
        samples: paths per pixel; the published pictures of CATER have 128, of ACRE 512.
        threads: number of CPU threads; 0 for one per core.

    Raises:
        UserError: there is no Python with ``bpy``, or Blender ends early or cannot render.
    """
    same = {
        "size": (width, height),
        "samples": samples,
        "threads": threads,
        "pictures": pictures,
        "numbers": segments or depth,
    }
    jobs = json.dumps([describe_job(*scene) | same for scene in scenes])
    np.savez(given := io.BytesIO(), jobs=np.array(jobs), **mesh_arrays())
    done = subprocess.run(
        [find_python(), "-P", str(_SCRIPT)],  # -P: its folder is not searched for modules
        input=given.getvalue(),
        capture_output=True,
        start_new_session=True,  # Ctrl-C reaches only this process
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        reason = f"signal {-done.returncode}" if done.returncode < 0 else lines[-1]
        raise UserError(f"Blender ended early: {reason}; the same command continues")
    drawn = []
    with np.load(io.BytesIO(done.stdout)) as arrays:
        for number, (scene, frames) in enumerate(scenes):
            names = [f"{number}-{k}" for k in range(len(frames))]
            found = [_picture(arrays[f"picture-{name}"]) for name in names if pictures]
            things = len(scene.things)
            voted = [vote(arrays[f"numbers-{name}"], things) for name in names if segments or depth]
            drawn.append(
                Rendering(
                    np.stack(found) if pictures else None,
                    np.stack([index for index, _ in voted]) if segments else None,
                    np.stack([distance for _, distance in voted]) if depth else None,
                )
            )
    return drawn


def _picture(file: np.ndarray) -> np.ndarray:
    """Read a picture from the bytes of its file: uint8 RGB [height, width, 3]."""
    try:
        with Image.open(io.BytesIO(file.tobytes())) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:  # Blender does not notice all errors of writing
        reason = f"Blender cannot write to {tempfile.gettempdir()}; is the disk full?"
        raise UserError(reason) from None


def vote(numbers: np.ndarray, things: int) -> tuple[np.ndarray, np.ndarray]:
    """Return segments and depth of pixels, given those of quarters [2 height, 2 width, 2]."""
    quarters = np.stack([numbers[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    index, depth = np.rint(quarters[..., 0]).astype(np.int16) - 1, quarters[..., 1]
    index[index == things] = MACHINE
    best = np.argmax((index[:, None] == index).sum(axis=1), axis=0)
    segments = np.take_along_axis(index, best[None], 0)[0]
    depth = np.where(depth > 0, depth, np.float32(np.inf))
    return segments, depth.mean(axis=0, where=index == segments)


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


@cache
def mesh_arrays() -> dict[str, Any]:
    """Return the meshes as the arrays that the script reads."""
    arrays: dict[str, Any] = {}
    for name, mesh in all_meshes().items():
        arrays[f"{name}.vertices"], arrays[f"{name}.faces"] = mesh.vertices, mesh.faces
        if mesh.normals is not None:
            arrays[f"{name}.normals"] = mesh.normals
    return arrays
