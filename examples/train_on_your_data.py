"""Train on your own labelled videos: a folder with a sub-folder of videos per class.

    python examples/train_on_your_data.py VIDEOS [flags of ivcl_fast.train]

A fifth of each class is held out for validation. Without arguments, the script trains briefly on
generated videos of a moving square, in a temporary folder.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

SHORT = (
    "--pretrain-clips 64 --finetune-clips 64 --batch-size 8 --num-frames 4 --num-query-frames 2 "
    "--no-pictures"
)


def train(videos: Path, flags: list[str]) -> None:
    """Train on a folder of videos, in which the frame store is written."""
    command = [sys.executable, "-m", "ivcl_fast.train", "--data", f"videos:{videos}", *flags]
    subprocess.run(command, check=True)


def make_videos(folder: Path) -> Path:
    """Write twenty videos of a moving square."""
    for number in range(20):
        place = folder / ("moves left", "moves right")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        with av.open(place / f"{number}.mp4", "w") as file:
            stream = file.add_stream("mpeg4", rate=12, width=64, height=64, pix_fmt="yuv420p")
            for left in range(0, 48, 4) if number % 2 else range(44, -4, -4):
                image = np.full((64, 64, 3), 40 + number, np.uint8)
                image[24:40, left : left + 16] = 220
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
    return folder


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(train(Path(sys.argv[1]).absolute(), sys.argv[2:]))
    with tempfile.TemporaryDirectory() as folder:
        train(make_videos(Path(folder) / "videos"), [*SHORT.split(), "--out", f"{folder}/runs"])
