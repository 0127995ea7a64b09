"""The maths of the renderer in NumPy: the reference for the C++ op, and its fallback.

Vectors are float32 [3, N], one column for each ray. Each pixel has four camera rays.
Three area lamps and the sun light each point that a ray hits, with one shadow ray to each light.
Metal adds one reflected ray. Indirect light is approximated with constants fitted to Cycles
pictures, in ``LOOK``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ivcl_fast.data.synthetic import scene as world
from ivcl_fast.data.synthetic import shapes
from ivcl_fast.data.synthetic.film import filtered, to_bytes
from ivcl_fast.data.synthetic.ground import (
    MACHINE_HALF,
    axes_cover,
    backdrop,
    edges_cover,
    machine_hits,
)
from ivcl_fast.data.synthetic.shapes import dot, unit

FLOOR, MACHINE, NOTHING = -1, -2, -3

SAMPLES = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)]) / 4
"""Offsets of a pixel's rays from its center."""
CELLS = (3, 1, 2, 0)
"""Quarter of a lamp that lights each ray."""
JITTER = np.array([(-1, -1), (1, 1), (1, -1), (-1, 1)]) / 8
"""Offset of the sampled points of a lamp, for the pixel of index ``x % 2 + 2 * (y % 2)``."""
FLOOR_COLOR = 0.8
MACHINE_COLOR = np.array(world.MACHINE_COLOR, dtype=np.float32)[:, None]
EDGE_COLOR = 0.2
GOLD = np.array([1.0, 0.843, 0.0], dtype=np.float32)[:, None]
LOOK = {
    "sky": 0.135,  # share of sunlight that the backdrop reflects onto the scene
    "bounce": 0.6,  # share of the ground's light that reaches things from below
    "glow": 0.45,  # share of a thing's light that reaches the ground
    "axes": 0.25,  # brightness of the axes relative to the floor
    "glint": 0.12,  # highlights of the lamps on the axes
    "side": 0.25,  # light of the sides of ACRE's machine, if it is off
    "velvet": 0.25,  # rubber's velvet as a share of its diffuse part
    "gloss": 0.31,  # GGX width of rubber's gloss
    "tight": 0.55,  # share of metal's lobe that is nearly a mirror
    "smooth": 0.01,  # GGX widths of metal's lobes
    "rough": 0.25,
    "curve": 0.21,  # how much curvature within a pixel widens them
    "mirror": 0.88,  # share of the light that metal reflects
}
LOBES = (LOOK["tight"], LOOK["smooth"]), (1 - LOOK["tight"], LOOK["rough"])
"""Share and width of metal's lobes."""
GLOSS_COLOR = 0.8
CURVES = 0.0, 1.0, 0.5, 0.0, 1.0
"""Curvature of shapes of radius 1: of cubes, spheres, cylinders, cones and the snitch."""
LAMP_WIDTH = 0.02
"""Factor by which a lamp's size widens highlights."""
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
    """First hits of N rays."""

    distance: np.ndarray
    """float32 [N], infinite if nothing is hit."""
    number: np.ndarray
    """int64 [N]: the thing, FLOOR, MACHINE or NOTHING."""
    point: np.ndarray
    normal: np.ndarray


def draw(
    numbers: Numbers, width: int, height: int, with_picture: bool, with_segments: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render all frames: uint8 [F, h, w, 3], int16 [F, h, w] and float32 [F, h, w]."""
    count = len(numbers.cameras)
    pictures = np.zeros((count, height, width, 3), dtype=np.uint8)
    segments = np.zeros((count, height, width), dtype=np.int16)
    depth = np.zeros((count, height, width), dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for frame in range(count):
            drawn = _Frame(numbers, frame).draw(width, height, with_picture)
            pictures[frame], segments[frame], depth[frame] = drawn
    return pictures, segments, depth


class _Frame:
    """One frame of a scene."""

    def __init__(self, numbers: Numbers, frame: int) -> None:
        self.n = numbers
        self.centers, self.axes = numbers.poses[frame, :, 0], numbers.poses[frame, :, 1:]
        self.camera = numbers.cameras[frame]
        pairs = zip(numbers.shapes, numbers.halves, strict=True)
        self.sky = np.float32(LOOK["sky"]) * numbers.lamps[-1, -1][:, None]
        bounds = np.array([shapes.bound(shape, half) for shape, half in pairs], dtype=np.float32)
        bounds = bounds.reshape(-1, 2) * numbers.radii[:, None]
        self.bounds, self.middles = bounds[:, 0], self.centers + bounds[:, 1:] * self.axes[:, 2]

    def draw(self, width: int, height: int, with_picture: bool):
        """Return picture, segments and depth."""
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        cell = (x % 2 + 2 * (y % 2))[..., None]
        jitter = JITTER[cell]

        def flat(values: np.ndarray) -> np.ndarray:
            return values.astype(np.float32).ravel()

        u = flat((x[..., None] + 0.5 + SAMPLES[:, 0]) / width - 0.5)
        v = flat(0.5 - (y[..., None] + 0.5 + SAMPLES[:, 1]) / height)
        lamp_u = flat(jitter[..., 0] + np.array([-0.25, 0.25, -0.25, 0.25])[list(CELLS)])
        lamp_v = flat(jitter[..., 1] + np.array([-0.25, -0.25, 0.25, 0.25])[list(CELLS)])
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
            self.pixel = hits.distance * np.sqrt(dot(right[:, 0], right[:, 0])) / width
            light = self.shade(d, hits, np.arange(d.shape[1]), 0)
            if self.n.ground != 1:
                self.add_lines(light, hits, d, right / width / 4, up / height / 4)
            picture = to_bytes(filtered(light.reshape(3, *shape))).transpose(1, 2, 0)
        return picture, segments, depth

    def trace(self, o: np.ndarray, d: np.ndarray, own: np.ndarray | None = None) -> Hits:
        """Find the first hit of each ray; ``own``: the things on which the rays start."""
        distance, normal = backdrop(o, d, world.MACHINE_GROUND if self.n.ground >= 2 else 0.0)
        number = np.where(np.isfinite(distance), FLOOR, NOTHING)
        if self.n.ground >= 2:
            t, n = machine_hits(o, d)
            first = t < distance
            distance[first], number[first], normal[:, first] = t[first], MACHINE, n[:, first]
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

    def near(self, i: int, o: np.ndarray, d: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """Indices of rays that meet a sphere around thing ``i`` before ``limit``."""
        to = self.middles[i][:, None] - o
        along = dot(to, d)
        away = dot(to, to) - along * along
        reach = self.bounds[i]
        return np.flatnonzero((away < reach * reach) & (along > -reach) & (along - reach < limit))

    def lit(self, p, n, own, rays, shadows: bool = True) -> tuple[list, list]:
        """Light of each lamp at points with normals, and the directions to the lamps.

        The irradiance is perpendicular to the light (without the cosine of the normal).
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
        if self.n.ground >= 2:
            here = rays[own[rays] != MACHINE]
            clear[here[machine_hits(p[:, here], d[:, here])[0] < limit[here]]] = 0
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
            t, _ = shapes.hit(shape, half, local, axes @ d[:, here], coarse=True)
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
        return (FLOOR_COLOR / np.pi) * (total + self.indirect(p, n))

    def indirect(self, p, n) -> np.ndarray:
        """Indirect light of the ground."""
        total = np.repeat(self.sky, p.shape[1], axis=1)
        for i in range(len(self.n.radii)):
            to = self.centers[i][:, None] - p
            square = dot(to, to)
            size = (self.n.radii[i] * 0.8) ** 2
            share = np.minimum(size / square, 1) * np.maximum(dot(to, n), 0) / np.sqrt(square)
            total += LOOK["glow"] * share * (self.n.colors[i][:, None] * 0.5 * 0.8)
        if self.n.ground >= 2:
            side = np.pi * MACHINE_COLOR * (1.0 if self.n.ground == 3 else LOOK["side"])
            away = np.maximum(np.abs(p[:2]) - MACHINE_HALF, 0)
            square = away[0] ** 2 + away[1] ** 2
            low = (p[2] < -0.5) * (n[2] > 0.5)
            total += side * (low * (0.5 - 0.5 * np.sqrt(square / (square + 1))))
            total += self.ground_light(p) * (FLOOR_COLOR * LOOK["bounce"] / 2 * (1 - n[2]))
        return total

    def box(self, p, n, d, own, rays, bounce) -> np.ndarray:
        if self.n.ground == 3:
            return np.broadcast_to(MACHINE_COLOR, p.shape)
        return self.floor(p, n, d, own, rays, bounce) / FLOOR_COLOR * MACHINE_COLOR

    def ground_light(self, p) -> np.ndarray:
        """Irradiance of the open floor below or above points."""
        foot = p * np.array([[1], [1], [0]], dtype=np.float32)
        up = np.broadcast_to(np.array([[0], [0], [1]], dtype=np.float32), p.shape)
        lights, directions = self.lit(foot, up, None, None, shadows=False)
        return gathered(up, lights, directions) + self.sky

    def below(self, p, n) -> np.ndarray:
        """Light of the ground on the surface of a thing, without shadows."""
        ground = self.ground_light(p) / np.pi
        if self.n.ground < 2:
            return FLOOR_COLOR * ground
        machine = MACHINE_COLOR * (1.0 if self.n.ground == 3 else ground)
        reach = np.abs(p[:2] + n[:2]).max(axis=0)
        return lerp(FLOOR_COLOR * ground, machine, np.clip(MACHINE_HALF + 0.5 - reach, 0, 1))

    def rubber(self, p, n, d, own, rays, bounce) -> np.ndarray:
        lights, directions = self.lit(p, n, own, rays)
        ground = self.below(p, n)
        total = gathered(n, lights, directions) + self.sky / 2 * (1 + n[2])
        total = total + ground * (LOOK["bounce"] * np.pi / 2 * (1 - n[2]))
        facing = np.maximum(-dot(n, d), 1e-3)
        velvet, gloss = fresnel(facing, 1.4), fresnel(facing, 1.2)
        body = (1 - gloss) * (1 - velvet * (1 - LOOK["velvet"])) / np.pi
        shine = self.shine(d, n, facing, lights, directions, [(1.0, LOOK["gloss"])], 0 * facing)
        down = np.clip(0.5 - 1.5 * (d[2] + 2 * facing * n[2]), 0, 1)
        shine = shine + ground * down
        return self.n.colors[own].T * body * total + GLOSS_COLOR * gloss * shine

    def metal(self, p, n, d, own, rays, bounce) -> np.ndarray:
        facing = np.maximum(-dot(n, d), 1e-3)
        mirrored = unit(d + 2 * facing * n)
        lights, directions = self.lit(p, n, own, rays)
        curve = np.choose(self.n.shapes[own], CURVES).astype(np.float32) / self.n.radii[own]
        spread = LOOK["curve"] * self.pixel[rays] * curve
        shine = self.shine(d, n, facing, lights, directions, LOBES, spread)
        if bounce == 0:
            hits = self.trace(p + _EPSILON * n, mirrored, own)
            seen = self.shade(mirrored, hits, rays, 1)
        else:
            seen = self.below(p, n) * np.clip(0.5 - 4 * mirrored[2], 0, 1)
        return self.n.colors[own].T * (shine + LOOK["mirror"] * seen)

    def shine(self, d, n, facing, lights, directions, lobes, spread) -> np.ndarray:
        """Highlights in GGX lobes (share, width), widened by the lamps' size and curvature."""
        total = np.zeros_like(n)
        for light, toward in zip(lights, directions, strict=True):
            cosine = dot(n, toward)
            near = np.maximum(cosine, 1e-3)
            c = dot(unit(toward - d), n) ** 2
            for share, width in lobes:
                a2 = width * width + LAMP_WIDTH**2 + spread * spread
                seen = 1 + np.sqrt(1 + a2 * (1 / facing**2 - 1))
                reached = 1 + np.sqrt(1 + a2 * (1 / near**2 - 1))
                lobe = share * a2 / (np.pi * (c * (a2 - 1) + 1) ** 2 * seen * reached * facing)
                total += light * lobe * (cosine > 0)
        return total

    def add_lines(self, light, hits: Hits, d, right, up) -> None:
        """Draw the axes on the floor, or the machine's edges."""
        axes = self.n.ground == 0
        lined = (hits.number == FLOOR) & (np.abs(hits.point[:2]).max(axis=0) < 4)
        rays = np.flatnonzero(lined if axes else hits.number == MACHINE)
        p, n, ray = hits.point[:, rays], hits.normal[:, rays], d[:, rays]
        scale = hits.distance[rays] * dot(self.camera[3][:, None], ray)
        reach = sum(np.abs(scale * (e - ray * (dot(e, n) / dot(ray, n)))) for e in (right, up))
        if not axes:
            edge = self.floor(p, n, ray, hits.number[rays], rays, 0) * (EDGE_COLOR / FLOOR_COLOR)
            light[:, rays] = lerp(light[:, rays], edge, edges_cover(p, n, reach))
            return
        lights, directions = self.lit(p, n, None, None, shadows=False)
        ground = self.below(p, n) * LOOK["axes"]
        for along, cover in enumerate(axes_cover(p[0], p[1], reach)):
            shine = ground
            for power, toward in zip(lights, directions, strict=True):
                tilt = unit(toward - ray)[along] ** 2
                for share, width in LOBES:
                    a2 = width * width + LAMP_WIDTH**2
                    shine = shine + power * (LOOK["glint"] * share * a2 / (a2 + tilt) ** 1.5)
            light[:, rays] = lerp(light[:, rays], GOLD * shine, cover)


def lerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + share * (b - a)


def gathered(normal: np.ndarray, lights: list, directions: list) -> np.ndarray:
    """Irradiance of a surface."""
    pairs = zip(lights, directions, strict=True)
    return sum(light * np.maximum(dot(normal, toward), 0) for light, toward in pairs)


def fresnel(cosine: np.ndarray, index: float) -> np.ndarray:
    """Unpolarised reflectance of a dielectric."""
    g = np.sqrt(index * index - 1 + cosine * cosine)
    a, b = (g - cosine) / (g + cosine), (cosine * (g + cosine) - 1) / (cosine * (g - cosine) + 1)
    return 0.5 * a * a * (1 + b * b)
