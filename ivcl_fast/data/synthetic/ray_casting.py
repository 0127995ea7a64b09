"""The maths of the renderer in NumPy: the reference of the C++ op, and used where that is missing.

Vectors are float32 [3, N], one column for each ray. Four rays per pixel see a thing or the ground.
What they see is lit by three area lamps and the sun, with one shadow ray to a point of each; metal
mirrors what one more ray sees. Light that bounces between things and ground is approximated:
``LOOK`` holds constants fitted to Cycles pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ivcl_fast.data.synthetic import shapes
from ivcl_fast.data.synthetic.ground import axes_cover, backdrop
from ivcl_fast.data.synthetic.shapes import dot, unit

FLOOR, MACHINE, NOTHING = -1, -2, -3

SAMPLES = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)]) / 4
"""Offsets of a pixel's rays from its center."""
FILTER = 0.3977, 0.1023
"""Weight of a pixel's own samples and of the nearest ones beside it, in one direction."""
CELLS = (3, 1, 2, 0)
"""Quarter of a lamp that each of them is lit by."""
JITTER = np.array([(-1, -1), (1, 1), (1, -1), (-1, 1)]) / 8
"""Offset of the lamp's points, by (x % 2) + 2 (y % 2) of the pixel."""
FLOOR_COLOR = 0.8
GOLD = np.array([1.0, 0.843, 0.0], dtype=np.float32)[:, None]
LOOK = {
    "sky": 0.06,  # irradiance of the ground by the backdrop
    "bounce": 0.8,  # share of the ground's light that reaches things from below
    "glow": 0.6,  # share of a thing's light that reaches the ground
    "axes": 0.6,  # light of the axes, in that of the floor
    "tight": 0.6,  # share of metal's lobe that is nearly a mirror
    "smooth": 0.01,  # GGX widths of metal's lobes
    "rough": 0.2,
}
_EPSILON = 2e-3


@dataclass(frozen=True)
class Numbers:
    """A scene of n things in F frames as arrays."""

    shapes: np.ndarray
    """int64 [n]: cube, sphere, cylinder, cone, spl."""
    metal: np.ndarray
    """int64 [n]: 0 or 1."""
    radii: np.ndarray
    """float32 [n]."""
    halves: np.ndarray
    """float32 [n]: half-heights of cylinders in radii."""
    colors: np.ndarray
    """float32 [n, 3], linear."""
    poses: np.ndarray
    """float32 [F, n, 4, 3]: centers, then the things' axes as unit vectors."""
    cameras: np.ndarray
    """float32 [F, 4, 3]: position, picture's width and height at distance 1, axis."""
    lamps: np.ndarray
    """float32 [4, 5, 3]: center, sides, direction, strength; the sun is the last."""
    ground: int
    """0 axes, 1 plain, 2 machine off, 3 machine on."""


class Hits(NamedTuple):
    """What N rays meet."""

    distance: np.ndarray
    """float32 [N], infinite for nothing."""
    number: np.ndarray
    """int64 [N]: the thing, FLOOR, MACHINE or NOTHING."""
    point: np.ndarray
    normal: np.ndarray


def draw(
    numbers: Numbers, width: int, height: int, with_picture: bool, with_segments: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw all frames: uint8 [F, h, w, 3], int16 [F, h, w] and float32 [F, h, w]."""
    count = len(numbers.cameras)
    pictures = np.zeros((count, height, width, 3), dtype=np.uint8)
    segments = np.zeros((count, height, width), dtype=np.int16)
    depth = np.zeros((count, height, width), dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for frame in range(count):
            drawn = _Frame(numbers, frame).draw(width, height, with_picture)
            pictures[frame], segments[frame], depth[frame] = drawn
    return pictures, segments, depth


def filtered(light: np.ndarray) -> np.ndarray:
    """Filter samples [3, h, w, 4] to pixels [3, h, w]: Blackman-Harris, 1.5 pixels wide."""
    _, height, width, _ = light.shape
    fine = light.reshape(3, height, width, 2, 2).swapaxes(2, 3).reshape(3, 2 * height, 2 * width)
    fine = np.pad(fine, [(0, 0), (1, 1), (1, 1)], mode="edge")

    def halved(x: np.ndarray) -> np.ndarray:
        own, beside = x[:, 1:-1:2] + x[:, 2:-1:2], x[:, 0:-2:2] + x[:, 3::2]
        return np.float32(FILTER[0]) * own + np.float32(FILTER[1]) * beside

    return halved(halved(fine).swapaxes(1, 2)).swapaxes(1, 2)


def to_bytes(light: np.ndarray) -> np.ndarray:
    """sRGB bytes of linear light, as Blender's Standard view."""
    x = np.clip(light, 0, 1)
    power = 1.055 * np.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055
    curve = np.where(x <= 0.0031308, 12.92 * x, power)
    return np.floor(255 * curve + 0.5).astype(np.uint8)


class _Frame:
    """One frame of a scene."""

    def __init__(self, numbers: Numbers, frame: int) -> None:
        self.n = numbers
        self.centers, self.axes = numbers.poses[frame, :, 0], numbers.poses[frame, :, 1:]
        self.camera = numbers.cameras[frame]
        pairs = zip(numbers.shapes, numbers.halves, strict=True)
        self.bounds = numbers.radii * [shapes.bound(shape, half) for shape, half in pairs]

    def draw(self, width: int, height: int, with_picture: bool):
        """Picture, segments and depth."""
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        cell = (x % 2 + 2 * (y % 2))[..., None]
        u = (x[..., None] + 0.5 + SAMPLES[:, 0]) / width - 0.5
        v = 0.5 - (y[..., None] + 0.5 + SAMPLES[:, 1]) / height
        jitter = JITTER[cell]
        lamp_u = jitter[..., 0] + np.array([-0.25, 0.25, -0.25, 0.25])[list(CELLS)]
        lamp_v = jitter[..., 1] + np.array([-0.25, -0.25, 0.25, 0.25])[list(CELLS)]
        u, v, lamp_u, lamp_v = (a.astype(np.float32).ravel() for a in (u, v, lamp_u, lamp_v))
        eye, right, up, forward = (a[:, None] for a in self.camera)
        ray = forward + u * right + v * up
        length = np.sqrt(dot(ray, ray))
        d = ray / length
        o = np.broadcast_to(eye, d.shape)
        hits = self.trace(o, d)
        shape = (len(x), width, 4)
        number = hits.number.reshape(shape)
        votes = (number[..., None] == number[..., None, :]).sum(-1)
        best = np.argmax(votes, axis=-1)[..., None]
        segments = np.take_along_axis(number, best, axis=-1)[..., 0]
        same = number == np.take_along_axis(number, best, axis=-1)
        depth = np.where(same, (hits.distance / length).reshape(shape), 0).sum(-1) / same.sum(-1)
        segments = np.where(segments == NOTHING, FLOOR, segments)
        picture = np.zeros((len(x), width, 3), dtype=np.uint8)
        if with_picture:
            self.lamp_points = lamp_u, lamp_v
            light = self.shade(d, hits, np.arange(d.shape[1]), 0)
            if self.n.ground == 0:
                light = self.add_axes(light, hits, d, right / width / 4, up / height / 4, length)
            picture = to_bytes(filtered(light.reshape(3, *shape))).transpose(1, 2, 0)
        return picture, segments, depth

    def trace(self, o: np.ndarray, d: np.ndarray, own: np.ndarray | None = None) -> Hits:
        """Find what rays meet first; ``own`` are things that they start on."""
        distance, normal = backdrop(o, d, -1.01 if self.n.ground >= 2 else 0.0)
        number = np.where(np.isfinite(distance), FLOOR, NOTHING)
        if self.n.ground >= 2:
            self.machine(o, d, distance, number, normal)
        for i, (shape, half) in enumerate(zip(self.n.shapes, self.n.halves, strict=True)):
            rays = self.near(i, o, d, distance)
            if own is not None and shape != 4:
                rays = rays[own[rays] != i]
            if len(rays) == 0:
                continue
            axes, radius = self.axes[i], self.n.radii[i]
            local = axes @ (o[:, rays] - self.centers[i][:, None]) / radius
            t, n = shapes.hit(shape, half, local, axes @ d[:, rays])
            first = t * radius < distance[rays]
            rays, t, n = rays[first], t[first] * radius, n[:, first]
            distance[rays], number[rays], normal[:, rays] = t, i, axes.T @ n
        point = o + np.where(np.isfinite(distance), distance, 0) * d
        return Hits(distance, number, point, normal)

    def machine(self, o, d, distance, number, normal) -> None:
        """Add ACRE's machine to what rays meet."""
        low, high = np.array([[-2.8, -2.8, -1]]).T, np.array([[2.8, 2.8, 0]]).T
        a, b = (low - o) / d, (high - o) / d
        near, end = np.minimum(a, b), np.maximum(a, b).min(0)
        side = np.argmax(near, axis=0)
        t = near.max(0)
        hit = (t < end) & (t > 0) & (t < distance)
        distance[hit], number[hit] = t[hit], MACHINE
        normal[:, hit] = 0
        normal[side[hit], hit] = -np.sign(d[side[hit], hit])

    def near(self, i: int, o: np.ndarray, d: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """Indices of rays that meet a sphere around thing ``i`` before ``limit``."""
        to = self.centers[i][:, None] - o
        along = dot(to, d)
        away = dot(to, to) - along * along
        reach = self.bounds[i]
        return np.flatnonzero((away < reach * reach) & (along > -reach) & (along - reach < limit))

    def lit(self, p, n, own, rays, shadows: bool = True) -> tuple[list, list]:
        """Light of each lamp at points with normals, and the directions to the lamps.

        Returns the irradiance across the direction of light (without the cosine of the normal).
        """
        lights, directions = [], []
        for k, (center, a, b, facing, strength) in enumerate(self.n.lamps[..., None]):
            if k < 3:
                to = center - p
                square = dot(to, to)
                toward = to / np.sqrt(square)
                power = np.maximum(-dot(toward, facing), 0) / square
            else:
                toward, power = np.broadcast_to(center, p.shape), np.ones(p.shape[1], np.float32)
            if shadows:
                u, v = self.lamp_points[0][rays], self.lamp_points[1][rays]
                ray = center + u * a + v * b - (p if k < 3 else 0)
                limit = np.sqrt(dot(ray, ray)) if k < 3 else np.full(p.shape[1], np.inf)
                candidates = np.flatnonzero((power > 0) & (dot(toward, n) > 0))
                open_ = self.visible(p, n, unit(ray), limit, own, candidates)
                power = power * open_
            lights.append(strength * power)
            directions.append(toward)
        return lights, directions

    def visible(self, p, n, d, limit, own, rays) -> np.ndarray:
        """1 where rays reach the lamp, 0 where a thing is in between."""
        clear = np.ones(p.shape[1], dtype=np.float32)
        for i, (shape, half) in enumerate(zip(self.n.shapes, self.n.halves, strict=True)):
            rays = rays[clear[rays] > 0]
            here = rays[self.near(i, p[:, rays], d[:, rays], limit[rays])]
            if shape != 4:
                here = here[own[here] != i]
            if len(here) == 0:
                continue
            axes, radius = self.axes[i], self.n.radii[i]
            o = p[:, here] + _EPSILON * n[:, here]
            local = axes @ (o - self.centers[i][:, None]) / radius
            t, _ = shapes.hit(shape, half, local, axes @ d[:, here])
            clear[here[t * radius < limit[here]]] = 0
        return clear

    def shade(self, d, hits: Hits, rays, bounce: int) -> np.ndarray:
        """Light that N rays see, [3, N]; ``rays`` are the indices of their camera rays."""
        light = np.zeros(d.shape, dtype=np.float32)
        metal = np.concatenate([self.n.metal, [0, 0, 0]])[hits.number].astype(bool)
        floor = np.flatnonzero(hits.number == FLOOR)
        thing = np.flatnonzero((hits.number >= 0) & ~metal)
        mirror = np.flatnonzero(metal)
        for chosen, shader in (
            (floor, self.floor),
            (thing, self.rubber),
            (mirror, self.metal),
            (np.flatnonzero(hits.number == MACHINE), self.box),
        ):
            if len(chosen):
                own = hits.number[chosen]
                light[:, chosen] = shader(
                    hits.point[:, chosen],
                    hits.normal[:, chosen],
                    d[:, chosen],
                    own,
                    rays[chosen],
                    bounce,
                )
        return light

    def floor(self, p, n, d, own, rays, bounce) -> np.ndarray:
        lights, directions = self.lit(p, n, own, rays)
        total = gathered(n, lights, directions)
        return (FLOOR_COLOR / np.pi) * (total + self.sky(p, n))

    def sky(self, p, n) -> np.ndarray:
        """Indirect light of the ground."""
        total = np.full(p.shape, LOOK["sky"], dtype=np.float32)
        for i in range(len(self.n.radii)):
            to = self.centers[i][:, None] - p
            square = dot(to, to)
            size = (self.n.radii[i] * 0.8) ** 2
            share = np.minimum(size / square, 1) * np.maximum(dot(to, n), 0) / np.sqrt(square)
            total += LOOK["glow"] * share * (self.n.colors[i][:, None] * 0.5 * 0.8)
        return total

    def box(self, p, n, d, own, rays, bounce) -> np.ndarray:
        color = np.array([0.8, 0.6, 0.6], dtype=np.float32)[:, None]
        if self.n.ground == 3:
            return np.broadcast_to(color, p.shape)
        return self.floor(p, n, d, own, rays, bounce) / FLOOR_COLOR * color

    def ground_light(self, p) -> np.ndarray:
        """Irradiance of the open floor below or above points."""
        foot = p * np.array([[1], [1], [0]], dtype=np.float32)
        up = np.broadcast_to(np.array([[0], [0], [1]], dtype=np.float32), p.shape)
        lights, directions = self.lit(foot, up, None, None, shadows=False)
        return gathered(up, lights, directions) + LOOK["sky"]

    def rubber(self, p, n, d, own, rays, bounce) -> np.ndarray:
        lights, directions = self.lit(p, n, own, rays)
        total = gathered(n, lights, directions)
        ground = self.ground_light(p)
        color = self.n.colors[own].T
        total = (
            total
            + ground * (FLOOR_COLOR * LOOK["bounce"] / 2) * (1 - n[2])
            + LOOK["sky"] * (1 + n[2]) / 2
        )
        facing = np.maximum(-dot(n, d), 0)
        gloss = fresnel(facing, 1.2) * 0.8
        mirrored = d + 2 * facing * n
        below = np.clip(0.5 - 1.5 * mirrored[2], 0, 1)
        return color * total / np.pi * (1 - gloss) + gloss * ground * (FLOOR_COLOR / np.pi) * below

    def metal(self, p, n, d, own, rays, bounce) -> np.ndarray:
        facing = np.maximum(-dot(n, d), 1e-3)
        mirrored = unit(d + 2 * facing * n)
        lights, directions = self.lit(p, n, own, rays)
        total = np.zeros_like(p)
        radius = self.n.radii[own]
        curve = np.choose(self.n.shapes[own], [0.0, 1.0, 0.5, 0.0, 4.0]) / radius
        footprint = 0.04 * curve
        for strength, toward in zip(lights, directions, strict=True):
            half = unit(toward - d)
            c = dot(half, n) ** 2
            cosine = np.maximum(dot(n, toward), 0)
            for share, width in (
                (LOOK["tight"], LOOK["smooth"]),
                (1 - LOOK["tight"], LOOK["rough"]),
            ):
                a2 = width * width + 0.02**2 + footprint * footprint
                k = a2 / (np.pi * (c * (a2 - 1) + 1) ** 2)
                g = (
                    1
                    / (
                        (1 + np.sqrt(1 + a2 * (1 / facing**2 - 1)))
                        * (1 + np.sqrt(1 + a2 * (1 / np.maximum(cosine, 1e-3) ** 2 - 1)))
                    )
                    * 4
                )
                total += strength * (share * k * g / (4 * facing)) * (cosine > 0)
        if bounce == 0:
            hits = self.trace(p + _EPSILON * n, mirrored, own)
            seen = self.shade(mirrored, hits, rays, 1)
        else:
            seen = (
                self.ground_light(p) * (FLOOR_COLOR / np.pi) * np.clip(0.5 - 4 * mirrored[2], 0, 1)
            )
        return self.n.colors[own].T * (total + seen)

    def add_axes(self, light, hits: Hits, d, right, up, length) -> np.ndarray:
        floor = np.flatnonzero((hits.number == FLOOR) & (np.abs(hits.point[:2]).max(0) < 4))
        p, ray = hits.point[:, floor], d[:, floor]
        scale = (hits.distance / length)[floor]
        ray = ray * length[floor]
        steps = sum(np.abs(scale * (e - ray * (e[2] / ray[2]))) for e in (right, up))
        cover = axes_cover(p[0], p[1], steps[:2])
        ground = self.ground_light(p) * (FLOOR_COLOR / np.pi)
        light[:, floor] += cover * (GOLD * ground * LOOK["axes"] - light[:, floor])
        return light


def gathered(normal: np.ndarray, lights: list, directions: list) -> np.ndarray:
    """Irradiance of a surface."""
    pairs = zip(lights, directions, strict=True)
    return sum(light * np.maximum(dot(normal, toward), 0) for light, toward in pairs)


def fresnel(cosine: np.ndarray, index: float) -> np.ndarray:
    """Unpolarised reflectance of a dielectric."""
    g = np.sqrt(index * index - 1 + cosine * cosine)
    a, b = (g - cosine) / (g + cosine), (cosine * (g + cosine) - 1) / (cosine * (g - cosine) + 1)
    return 0.5 * a * a * (1 + b * b)
