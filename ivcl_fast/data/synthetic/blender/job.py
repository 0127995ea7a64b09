"""Converts a scene to the input of the script :mod:`.script`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ivcl_fast.data.synthetic import scene as world
from ivcl_fast.data.synthetic.blender import meshes
from ivcl_fast.data.synthetic.ground import POSITION, TURN
from ivcl_fast.data.synthetic.scene import Scene, Thing

_GRAY = [0.8, 0.8, 0.8]


def describe_job(scene: Scene, frames: Sequence[int]) -> dict[str, Any]:
    """Describe some frames of a scene, without the size and quality of the pictures.

    Objects have a mesh, a material and a color, and may have a scale, a location, a rotation about
    z, a number, and a thickness of their edges, of which then only these are drawn.
    """
    frames = list(frames)
    camera = np.broadcast_to(scene.camera, (len(scene.locations), 3))
    return {
        "focal": world.FOCAL,
        "aspect": world.ASPECT,
        "target": list(scene.target),
        "camera": camera[frames].tolist(),
        "locations": scene.locations[frames].tolist(),
        "rotations": scene.rotations[frames].tolist(),
        "things": [_thing(one) | {"number": k} for k, one in enumerate(scene.things, 1)],
        "still": _still(scene.ground, len(scene.things) + 1),
        "lamps": _lamps(scene),
    }


def _thing(thing: Thing) -> dict[str, Any]:
    scale = np.full(3, thing.radius)
    if thing.shape == "spl":
        scale *= world.SNITCH_SCALE
    if thing.shape == "cylinder" and not thing.tall:
        scale[2] *= world.SHORT_CYLINDER
    color = _color(thing.color)
    return dict(mesh=thing.shape, material=thing.material, color=color, scale=scale.tolist())


def _color(name: str) -> list[float]:
    return (np.array(world.COLORS[name]) / 255).tolist()


def _still(ground: world.Ground, machine: int) -> list[dict[str, Any]]:
    """Describe the static objects; ``machine`` is the number of the machine."""
    has_machine = ground in ("machine_on", "machine_off")
    place = [*POSITION, world.MACHINE_GROUND if has_machine else 0.0]
    still = [dict(mesh="ground", material="diffuse", color=_GRAY, location=place, turn=TURN)]
    if ground == "axes":
        still.append(dict(mesh="axes", material="metal", color=_color("gold")))
    if has_machine:
        box = dict(mesh="machine", location=[0, 0, -world.MACHINE[1] / 2], number=machine)
        surface = "emission" if ground == "machine_on" else "diffuse"
        still.append(box | dict(material=surface, color=world.MACHINE_COLOR))
        still.append(box | dict(material="diffuse", color=[0.2, 0.2, 0.2], edges=meshes.WIRE))
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
