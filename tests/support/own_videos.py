"""Folders of small videos as people have them: any container, codec, size, length and rotation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.painted import VP9, picture, write_video

KINDS = (
    ("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mjpeg"), ("gif", "gif"),
    ("mov", "libx265"), ("mkv", "libsvtav1"), ("", "frames"),
)  # fmt: skip
"""Suffix and codec; the last is a folder of images."""
QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12"}}


def pictures(number: int, frames: int, height: int, width: int) -> list[np.ndarray]:
    """Paint frames of any size: the numbers of video and frame, with a border."""
    inside = [picture(number, f, height // 4 * 4, width // 4 * 4) for f in range(frames)]
    border = [(0, height % 4), (0, width % 4), (0, 0)]
    return [np.pad(one, border) for one in inside]


def write_one(folder: Path, number: int) -> Path:
    """Write video ``number``, which determines its kind, size, length and rotation."""
    suffix, codec = KINDS[number % len(KINDS)]
    frames, height, width = 3 + number % 5, 70 + 2 * (number % 7), 82 + 6 * (number % 3)
    path = folder / (f"{number:02d}.{suffix}" if suffix else f"{number:02d}")
    folder.mkdir(parents=True, exist_ok=True)
    if codec in ("gif", "frames"):  # these may have odd sizes
        images = [Image.fromarray(p) for p in pictures(number, frames, height + 1, width - 1)]
        if codec == "gif":
            images[0].save(path, save_all=True, append_images=images[1:])
            return path
        path.mkdir()
        for i, image in enumerate(images):
            image.save(path / f"{i}.png")  # 10.png comes after 9.png
        return path
    options = VP9 if codec == "libvpx-vp9" else QUIET.get(codec, {})
    rotation = 90 if suffix in ("mp4", "mov") else 0
    pixels = pictures(number, frames, height, width)
    return write_video(path, pixels, codec, rotation=rotation, **options)
