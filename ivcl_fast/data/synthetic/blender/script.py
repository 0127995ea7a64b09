"""Script for a Python that has ``bpy``: renders frames described in JSON.

``python -P script.py`` reads the arrays of an ``npz`` file from its input: the meshes, and
``jobs``, a JSON list (see :mod:`.job`). It writes such a file to its output, with arrays for each
frame K of job J: ``picture-J-K``, the bytes of a PNG file, or ``numbers-J-K``, float32
[2 height, 2 width, 2] with the number of the object and the depth at the centers of quarter pixels,
or both. It imports nothing of this project.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bpy
import numpy as np
from mathutils import Vector

GPU_KINDS = ("OPTIX", "CUDA", "HIP", "METAL", "ONEAPI")
FLAT_FILTER = 0.01
"""Filter width of flat pictures in pixels, the smallest that Cycles accepts."""


class Studio:
    """Two Blender scenes of the same objects: for the picture, and for object numbers and depth."""

    def __init__(self, arrays: dict[str, np.ndarray], threads: int) -> None:
        """``arrays``: of the meshes. ``threads``: on a CPU; 0 for one per core."""
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.device = "GPU" if use_gpu() else "CPU"
        self.threads = threads
        names = {name.split(".")[0] for name in arrays}
        self.meshes = {name: make_mesh(name, arrays) for name in sorted(names)}
        self.picture = self._new_scene("picture")
        set_up_picture(self.picture)
        self.flat = self._new_scene("flat")
        set_up_flat(self.flat)
        self.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        for scene in (self.picture, self.flat):
            scene.collection.objects.link(self.camera)
            scene.camera = self.camera

    def _new_scene(self, name: str) -> bpy.types.Scene:
        scene = bpy.data.scenes.new(name)
        scene.render.engine = "CYCLES"
        scene.render.use_persistent_data = True
        scene.cycles.device = self.device
        if self.threads:
            scene.render.threads_mode, scene.render.threads = "FIXED", self.threads
        return scene

    def draw(self, job: dict[str, Any], folder: Path) -> Iterator[tuple[str, int, np.ndarray]]:
        """Render the frames of a job; yields arrays by name and frame. ``folder``: for files."""
        width, height = job["size"]
        set_size(self.picture, width, height, job["aspect"])
        set_size(self.flat, 2 * width, 2 * height, job["aspect"])
        self.picture.cycles.samples = job["samples"]
        self.camera.data.sensor_width, self.camera.data.lens = 32.0, 32.0 * job["focal"]
        for lamp in job["lamps"]:
            self._add_lamp(lamp, job["target"])
        for still in job["still"]:
            self._add_object(still)
        things = [self._add_object(one) for one in job["things"]]
        for k, camera in enumerate(job["camera"]):
            turn_to(self.camera, camera, job["target"])
            for thing, location, rotation in zip(
                things, job["locations"][k], job["rotations"][k], strict=True
            ):
                thing.location, thing.rotation_euler = location, rotation
            if job["pictures"]:
                render(self.picture, folder / "picture.png")
                yield "picture", k, np.fromfile(folder / "picture.png", np.uint8)
            if job["numbers"]:
                render(self.flat, folder / "flat.exr")
                yield "numbers", k, read_flat(folder / "flat.exr")

    def _add_object(self, given: dict[str, Any]) -> bpy.types.Object:
        one = bpy.data.objects.new("thing", self.meshes[given["mesh"]])
        one.material_slots[0].link = "OBJECT"
        one.material_slots[0].material = MATERIALS[given["material"]](given["color"])
        one.location, one.scale = given.get("location", (0, 0, 0)), given.get("scale", (1, 1, 1))
        one.rotation_euler = 0.0, 0.0, given.get("turn", 0.0)
        one.pass_index = given.get("number", 0)
        if "edges" in given:
            wire = one.modifiers.new("wire", "WIREFRAME")
            wire.thickness, wire.offset = given["edges"], 0.0
        for scene in (self.picture, self.flat):
            scene.collection.objects.link(one)
        return one

    def _add_lamp(self, given: dict[str, Any], target: list[float]) -> None:
        lamp = bpy.data.lights.new("lamp", given["type"])
        lamp.energy, lamp.color = given["power"], given["color"]
        one = bpy.data.objects.new("lamp", lamp)
        if given["type"] == "SUN":
            lamp.angle = given["size"]
            turn_to(one, (0.0, 0.0, 10.0), Vector((0.0, 0.0, 10.0)) + Vector(given["direction"]))
        else:
            lamp.shape, lamp.size = "SQUARE", given["size"]
            turn_to(one, given["position"], target)
        one.visible_camera = False
        self.picture.collection.objects.link(one)


# --- Settings ------------------------------------------------------------------------------------


def use_gpu() -> bool:
    """Select the first kind of GPU that Cycles finds; return whether there is one."""
    preferences = bpy.context.preferences.addons["cycles"].preferences
    for kind in GPU_KINDS:
        try:
            preferences.compute_device_type = kind
        except TypeError:  # not built for this system
            continue
        preferences.refresh_devices()
        gpus = [one for one in preferences.devices if one.type == kind]
        for one in preferences.devices:
            one.use = one.type == kind
        if gpus:
            return True
    return False


def set_up_picture(scene: bpy.types.Scene) -> None:
    """Path tracing as in Blender 2.7: no denoiser, no adaptive sampling, no clamps, plain sRGB."""
    cycles, render = scene.cycles, scene.render
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = False
    cycles.sample_clamp_direct = cycles.sample_clamp_indirect = 0.0
    cycles.use_light_tree = False
    cycles.light_sampling_threshold = 0.0
    cycles.blur_glossy = 2.0
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 12, 4, 4
    cycles.caustics_reflective = cycles.caustics_refractive = True
    cycles.pixel_filter_type, cycles.filter_width = "BLACKMAN_HARRIS", 1.5
    cycles.seed = 0
    render.dither_intensity = 0.0
    render.image_settings.file_format = "PNG"
    render.image_settings.color_mode = "RGB"
    render.image_settings.compression = 15
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.world = bpy.data.worlds.new("black")
    scene.world.color = (0.0, 0.0, 0.0)


def set_up_flat(scene: bpy.types.Scene) -> None:
    """One ray through the center of each pixel, which returns numbers instead of light."""
    cycles = scene.cycles
    cycles.samples = 1
    cycles.use_adaptive_sampling = cycles.use_denoising = False
    cycles.max_bounces = 0
    cycles.pixel_filter_type, cycles.filter_width = "BOX", FLAT_FILTER
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_depth = "32"
    scene.view_layers[0].material_override = numbers_material()


def set_size(scene: bpy.types.Scene, width: int, height: int, aspect: float) -> None:
    """Set the size in pixels; ``aspect``: aspect ratio of the view."""
    render = scene.render
    render.resolution_x, render.resolution_y, render.resolution_percentage = width, height, 100
    pixel = aspect * height / width
    render.pixel_aspect_x, render.pixel_aspect_y = max(pixel, 1.0), max(1.0 / pixel, 1.0)


def turn_to(one: bpy.types.Object, position: Any, target: Any) -> None:
    """Place a camera or lamp so that it faces a target, upright."""
    one.location = position
    direction = Vector(target) - Vector(position)
    one.rotation_euler = direction.to_track_quat("-Z", "Y").to_euler()


def render(scene: bpy.types.Scene, file: Path) -> None:
    scene.render.filepath = str(file)
    bpy.ops.render.render(write_still=True, scene=scene.name)


def read_flat(file: Path) -> np.ndarray:
    """Read a flat picture: float32 [height, width, 2]."""
    image = bpy.data.images.load(str(file))
    image.colorspace_settings.name = "Non-Color"
    width, height = image.size
    pixels = np.empty(width * height * 4, dtype=np.float32)
    image.pixels.foreach_get(pixels)
    bpy.data.images.remove(image)
    return pixels.reshape(height, width, 4)[::-1, :, :2]


# --- Meshes and materials ------------------------------------------------------------------------


def make_mesh(name: str, arrays: Any) -> bpy.types.Mesh:
    mesh = bpy.data.meshes.new(name)
    faces = [face[:3] if face[2] == face[3] else face for face in arrays[f"{name}.faces"].tolist()]
    mesh.from_pydata(arrays[f"{name}.vertices"].tolist(), [], faces)
    if f"{name}.normals" in arrays:
        mesh.shade_smooth()
        mesh.normals_split_custom_set_from_vertices(arrays[f"{name}.normals"].tolist())
    else:
        mesh.shade_flat()
    mesh.materials.append(None)
    return mesh


class Nodes:
    """A material under construction."""

    def __init__(self, name: str) -> None:
        self.material = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.tree = self.material.node_tree
        self.tree.nodes.clear()

    def add(self, kind: str, distribution: str | None = None, **inputs: Any) -> Any:
        """Add a node with values or links by the names of its inputs; returns its output."""
        node = self.tree.nodes.new(f"ShaderNode{kind}")
        if distribution:
            node.distribution = distribution
        for name, value in inputs.items():
            if isinstance(value, bpy.types.NodeSocket):
                self.tree.links.new(value, node.inputs[name])
            else:
                node.inputs[name].default_value = value
        return node.outputs[0] if node.outputs else node

    def mix(self, share: Any, first: Any, second: Any) -> Any:
        node = self.tree.nodes.new("ShaderNodeMixShader")
        for socket, value in zip(node.inputs, (share, first, second), strict=True):
            if isinstance(value, bpy.types.NodeSocket):
                self.tree.links.new(value, socket)
            else:
                socket.default_value = value
        return node.outputs[0]

    def finish(self, surface: Any) -> bpy.types.Material:
        self.add("OutputMaterial", Surface=surface)
        return self.material


def rubber(color: list[float]) -> bpy.types.Material:
    """Diffuse that turns to velvet at grazing angles, under a weak gray gloss."""
    nodes, rgba = Nodes("rubber"), [*color, 1.0]
    diffuse = nodes.add("BsdfDiffuse", Color=rgba, Roughness=0.0)
    velvet = nodes.add("BsdfSheen", "ASHIKHMIN", Color=rgba, Roughness=0.6)
    body = nodes.mix(nodes.add("Fresnel", IOR=1.4), diffuse, velvet)
    gray = [0.8, 0.8, 0.8, 1.0]
    # Blender squares roughness since 2.8: this is the published 0.35.
    gloss = nodes.add("BsdfAnisotropic", "BECKMANN", Color=gray, Roughness=0.35**0.5)
    return nodes.finish(nodes.mix(nodes.add("Fresnel", IOR=1.2), body, gloss))


def metal(color: list[float]) -> bpy.types.Material:
    """A blurred and a nearly sharp reflection, 0.4 and 0.6, both slightly stretched."""
    nodes, rgba = Nodes("metal"), [*color, 1.0]
    blurred, sharp = (
        nodes.add("BsdfAnisotropic", "GGX", Color=rgba, Roughness=roughness**0.5, Anisotropy=0.25)
        for roughness in (0.2, 0.01)
    )
    return nodes.finish(nodes.mix(0.6, blurred, sharp))


def diffuse(color: list[float]) -> bpy.types.Material:
    nodes = Nodes("diffuse")
    return nodes.finish(nodes.add("BsdfDiffuse", Color=[*color, 1.0], Roughness=0.0))


def emission(color: list[float]) -> bpy.types.Material:
    nodes = Nodes("emission")
    return nodes.finish(nodes.add("Emission", Color=[*color, 1.0], Strength=1.0))


MATERIALS = {"rubber": rubber, "metal": metal, "diffuse": diffuse, "emission": emission}


def numbers_material() -> bpy.types.Material:
    """Surface that emits the object's number in red and the depth in green."""
    nodes = Nodes("numbers")
    index = nodes.tree.nodes.new("ShaderNodeObjectInfo").outputs["Object Index"]
    depth = nodes.tree.nodes.new("ShaderNodeCameraData").outputs["View Z Depth"]
    color = nodes.add("CombineXYZ", X=index, Y=depth, Z=0.0)
    nodes.material.cycles.emission_sampling = "NONE"
    return nodes.finish(nodes.add("Emission", Color=color, Strength=1.0))


def main() -> None:
    output, parent = os.dup(1), os.getppid()
    os.dup2(2, 1)  # Blender prints to the output
    with np.load(io.BytesIO(sys.stdin.buffer.read())) as given:
        arrays = dict(given)
    drawn: dict[str, Any] = {}
    with TemporaryDirectory(prefix="ivcl-fast-blender-") as folder:
        for number, job in enumerate(json.loads(str(arrays.pop("jobs")))):
            studio = Studio(arrays, job["threads"])
            for name, frame, array in studio.draw(job, Path(folder)):
                drawn[f"{name}-{number}-{frame}"] = array
                if os.getppid() != parent:  # it was stopped or killed
                    return
    np.savez(packed := io.BytesIO(), **drawn)
    with os.fdopen(output, "wb") as answer:
        answer.write(packed.getvalue())


if __name__ == "__main__":
    main()
