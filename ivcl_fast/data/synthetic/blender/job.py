"""Converts a scene to the input of the script :mod:`.script`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ivcl_fast.data.synthetic import scene as world
from ivcl_fast.data.synthetic.blender import meshes
from ivcl_fast.data.synthetic.ground import POSITION, TURN
from ivcl_fast.data.synthetic.scene import Scene, Thing


def describe_job(scene: Scene, frames: Sequence[int]) -> dict[str, Any]:
    """Describe some frames of a scene, without the size and quality of the pictures."""
    frames = list(frames)
    camera = np.broadcast_to(scene.camera, (len(scene.locations), 3))
    return {
        "focal": world.FOCAL,
        "aspect": world.ASPECT,
        "target": list(scene.target),
        "camera": camera[frames].tolist(),
        "locations": scene.locations[frames].tolist(),
        "rotations": scene.rotations[frames].tolist(),
        "things": [_thing(one, k + 1) for k, one in enumerate(scene.things)],
        "still": _still(scene.ground, len(scene.things) + 1),
        "lamps": _lamps(scene),
    }


def _thing(thing: Thing, index: int) -> dict[str, Any]:
    size = np.full(3, thing.radius)
    if thing.shape == "spl":
        size *= world.SNITCH_SCALE
    if thing.shape == "cylinder" and not thing.tall:
        size[2] *= world.SHORT_CYLINDER
    color = np.array(world.COLORS[thing.color]) / 255
    return _object(thing.shape, thing.material, color, size, index=index)


def _object(
    mesh: str,
    material: str,
    color: Any,
    scale: Any = (1, 1, 1),
    location: Any = (0, 0, 0),
    turn: float = 0.0,
    index: int = 0,
    wire: float = 0.0,
) -> dict[str, Any]:
    return {
        "mesh": mesh,
        "surface": {"kind": material, "color": np.asarray(color, dtype=float).tolist()},
        "scale": np.asarray(scale, dtype=float).tolist(),
        "location": np.asarray(location, dtype=float).tolist(),
        "rotation": [0.0, 0.0, turn],
        "index": index,
        "wire": wire,
    }


def _still(ground: world.Ground, machine: int) -> list[dict[str, Any]]:
    """Describe the static objects; ``machine`` is the number of the machine."""
    gray = (0.8, 0.8, 0.8)
    backdrop = [*POSITION, 0.0]
    has_machine = ground in ("machine_on", "machine_off")
    if has_machine:
        backdrop[2] = world.MACHINE_GROUND
    still = [_object("ground", "diffuse", gray, location=backdrop, turn=TURN)]
    if ground == "axes":
        still.append(_object("axes", "metal", np.array(world.COLORS["gold"]) / 255))
    if has_machine:
        place: dict[str, Any] = {"location": (0, 0, -world.MACHINE[1] / 2), "index": machine}
        surface = "emission" if ground == "machine_on" else "diffuse"
        still += [
            _object("machine", surface, world.MACHINE_COLOR, **place),
            _object("machine", "diffuse", (0.2, 0.2, 0.2), wire=meshes.WIRE, **place),
        ]
    return still


def _lamps(scene: Scene) -> list[dict[str, Any]]:
    power = world.MACHINE_LIGHT if scene.ground in ("machine_on", "machine_off") else 1.0
    lamps = [
        {
            "type": "AREA",
            "position": np.asarray(position, dtype=float).tolist(),
            "size": world.LAMP_SIZES[name],
            "power": world.LAMP_POWERS[name] * power,
            "color": world.LAMP_COLORS[name],
        }
        for name, position in scene.lamps.items()
    ]
    sun = {
        "type": "SUN",
        "direction": world.SUN_DIRECTION,
        "size": world.SUN_ANGLE,
        "power": world.SUN_STRENGTH,
        "color": (1.0, 1.0, 1.0),
    }
    return [*lamps, sun]
