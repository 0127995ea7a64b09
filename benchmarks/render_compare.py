"""Compares the fast renderer with Blender on the same scenes: light, structure and segments.

``python -m benchmarks.render_compare`` writes ``docs/results/world/renderers.md`` and the sheet of
pictures ``docs/figures/renderers.png``. Blender's pictures are kept in ``--cache`` and used again.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ivcl_fast.data.formats.acre import PANELS, object_table
from ivcl_fast.data.synthetic.acre.rules import draw_problem
from ivcl_fast.data.synthetic.acre.scene import draw_panel
from ivcl_fast.data.synthetic.blender import process
from ivcl_fast.data.synthetic.cater.video import draw_video
from ivcl_fast.data.synthetic.render import FLOOR, MACHINE, Rendering, render
from ivcl_fast.data.synthetic.scene import Scene

ROOT = Path(__file__).parents[1]
SEED, HELD_OUT_SEED = 61, 62
"""Seeds of the scenes. The renderer's constants were fitted to CATER's scenes of the first."""
FRAMES_PER_VIDEO = 2
VISIBLE = 20
"""Smallest number of pixels in Blender's segments of an object whose IoU counts."""
STABLE = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SHEET = (128, 96)


class Frame(NamedTuple):
    """A rendered frame: uint8 [h, w, 3] and int16 [h, w]."""

    picture: np.ndarray
    segments: np.ndarray


class Case(NamedTuple):
    """A scene of one frame in both renderers."""

    scene: Scene
    blender: Frame
    fast: Frame


def cater_scenes(count: int, seed: int = SEED) -> Iterator[tuple[str, Scene]]:
    """Yield frames of CATER videos with a static camera."""
    for video in range(-(-count // FRAMES_PER_VIDEO)):
        frames = np.sort(np.random.default_rng(video).integers(0, 301, FRAMES_PER_VIDEO))
        scene = draw_video(seed, video).scene(frames)
        for k, frame in enumerate(frames):
            yield f"cater{seed}-{video:03d}-{frame:03d}", one_frame(scene, k)


def acre_scenes(count: int) -> Iterator[tuple[str, Scene]]:
    """Yield the panels of ACRE problems."""
    table = object_table("iid", "train")
    for problem in range(-(-count // len(PANELS))):
        rng = np.random.default_rng((SEED, problem))
        for i, panel in enumerate(draw_problem("iid", "train", SEED, problem)):
            yield f"acre-{problem:03d}-{i}", draw_panel(rng, panel, table)


def one_frame(scene: Scene, frame: int) -> Scene:
    here = slice(frame, frame + 1)
    camera = scene.camera if len(scene.camera) == 1 else scene.camera[here]
    return replace(
        scene, locations=scene.locations[here], rotations=scene.rotations[here], camera=camera
    )


# --- Measures ------------------------------------------------------------------------------------


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Structural similarity of two pictures [h, w, 3] in 0..255: float64 [h, w], over channels."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    cov = blurred(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + STABLE[0]) / (mean_x**2 + mean_y**2 + STABLE[0])
    return (light * (2 * cov + STABLE[1]) / (var_x + var_y + STABLE[1])).mean(axis=-1)


def blurred(picture: np.ndarray) -> np.ndarray:
    """Average over a Gaussian window of 11 pixels; the borders are mirrored."""
    return gaussian_filter(picture, sigma=1.5, radius=5, mode="mirror", axes=(0, 1))


def regions(scene: Scene, segments: np.ndarray) -> dict[str, np.ndarray]:
    """Return which pixels show the floor, the machine, and things of each material."""
    masks = {"floor": segments == FLOOR}
    if (segments == MACHINE).any():
        masks["machine"] = segments == MACHINE
    for k, thing in enumerate(scene.things):
        name = "snitch" if thing.shape == "spl" else thing.material
        masks[name] = masks.get(name, np.zeros_like(segments, dtype=bool)) | (segments == k)
    return masks


def overlaps(case: Case) -> Iterator[float]:
    """Yield the IoU of the two segments of each object that is large enough."""
    for k in range(len(case.scene.things)):
        ours, theirs = case.fast.segments == k, case.blender.segments == k
        if theirs.sum() > VISIBLE:
            yield (ours & theirs).sum() / (ours | theirs).sum()


# --- Pages ---------------------------------------------------------------------------------------


def table(cases: Sequence[Case]) -> list[str]:
    """Return rows of a Markdown table: differences in all pixels and per material."""
    errors: dict[str, list[float]] = defaultdict(list)
    biases: dict[str, list[float]] = defaultdict(list)
    similar: dict[str, list[float]] = defaultdict(list)
    pixels: dict[str, int] = defaultdict(int)
    for case in cases:
        difference = case.fast.picture.astype(np.float64) - case.blender.picture
        structure = ssim(case.fast.picture, case.blender.picture)
        masks = {"all": np.ones_like(structure, dtype=bool)}
        for name, mask in (masks | regions(case.scene, case.blender.segments)).items():
            errors[name] += np.abs(difference[mask]).mean(axis=-1).tolist()
            biases[name] += difference[mask].mean(axis=-1).tolist()
            similar[name] += structure[mask].tolist()
            pixels[name] += int(mask.sum())
    return [
        f"| {name} | {pixels[name] / pixels['all']:.1%} | {np.mean(errors[name]):.2f} "
        f"| {np.mean(biases[name]):+.2f} | {np.mean(similar[name]):.3f} |"
        for name in errors
    ]


def page(groups: dict[str, list[Case]], samples: int, size: int) -> str:
    """Return the Markdown page of all groups of scenes."""
    lines = [
        "# The fast renderer against Blender",
        "",
        "Written by `python -m benchmarks.render_compare`.",
        f"Pictures of {size} x {size} pixels, Blender's with {samples:,} samples per pixel. Error: "
        "mean absolute difference in 0..255, over pixels and channels; bias: mean of fast minus "
        "Blender; SSIM: Gaussian window of 11 pixels, mean over the pixels of a row. IoU: of "
        f"segments, objects of more than {VISIBLE} pixels.",
    ]
    for title, cases in groups.items():
        if not cases:
            continue
        light = [np.abs(c.fast.picture.astype(float) - c.blender.picture).mean() for c in cases]
        structure = [ssim(c.fast.picture, c.blender.picture).mean() for c in cases]
        found = np.array([iou for case in cases for iou in overlaps(case)])
        lines += [
            "",
            f"## {title}: {len(cases)} pictures",
            "",
            "| pixels | share | error | bias | SSIM |",
            "|---|---|---|---|---|",
            *table(cases),
            "",
            f"Worst pictures: error {max(light):.2f}, SSIM {min(structure):.3f}. IoU of "
            f"{len(found)} objects: mean {found.mean():.3f}, {np.mean(found >= 0.95):.1%} of them "
            f"at least 0.95, lowest {found.min():.3f}.",
        ]
    return "\n".join(lines) + "\n"


def write_sheet(file: Path, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write pairs of pictures, Blender's on the left, in two columns of pairs."""
    pairs = [np.concatenate(row, axis=1) for row in rows]
    lines = [np.concatenate(pairs[i : i + 2], axis=1) for i in range(0, len(pairs) - 1, 2)]
    Image.fromarray(np.concatenate(lines)).save(file, optimize=True)


# --- Rendering -----------------------------------------------------------------------------------


def draw_both(samples: int, cache: Path, name: str, scene: Scene, width: int, height: int) -> Case:
    """Render a scene of one frame with both renderers; Blender's picture may be cached."""
    file = cache / f"{name}-{width}x{height}-{samples}.npz"
    if file.is_file():
        with np.load(file) as arrays:
            theirs = Frame(arrays["picture"], arrays["segments"])
    else:
        theirs = draw(partial(process.render, samples=samples, threads=0), scene, width, height)
        np.savez(file, **theirs._asdict())
        print(f"rendered: {file.name}", flush=True)
    return Case(scene, theirs, draw(render, scene, width, height))


def draw(renderer: Callable[..., Rendering], scene: Scene, width: int, height: int) -> Frame:
    drawn = renderer(scene, [0], width, height, segments=True)
    return Frame(drawn.pictures[0], drawn.segments[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cater", type=int, default=100, help="frames of CATER, two of a video")
    parser.add_argument("--held-out", type=int, default=100, help="frames of other scenes")
    parser.add_argument("--acre", type=int, default=20, help="panels of ACRE, ten of a problem")
    parser.add_argument("--size", type=int, default=64, help="image size in pixels")
    parser.add_argument("--samples", type=int, default=1024, help="Blender's samples per pixel")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "render_compare")
    flags = parser.parse_args()
    flags.cache.mkdir(parents=True, exist_ok=True)
    scenes = {
        "CATER, scenes that constants were fitted to": list(cater_scenes(flags.cater)),
        "CATER, other scenes": list(cater_scenes(flags.held_out, HELD_OUT_SEED)),
        "ACRE": list(acre_scenes(flags.acre)),
    }
    both = partial(draw_both, flags.samples, flags.cache)
    groups = {
        title: [both(*one, flags.size, flags.size) for one in group]
        for title, group in scenes.items()
    }
    cater, _, acre = scenes.values()
    shown = [*cater[::FRAMES_PER_VIDEO][:4], *acre[:2]]
    sheet = [both(*one, *SHEET) for one in shown]
    results = ROOT / "docs" / "results" / "world"
    results.mkdir(parents=True, exist_ok=True)
    (results / "renderers.md").write_text(page(groups, flags.samples, flags.size))
    pairs = [(case.blender.picture, case.fast.picture) for case in sheet]
    write_sheet(ROOT / "docs" / "figures" / "renderers.png", pairs)


if __name__ == "__main__":
    main()
