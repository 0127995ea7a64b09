"""Train on your own labelled videos: a folder with one sub-folder of videos for each class.

    python examples/train_on_your_data.py VIDEOS [flags of ivcl_fast.train]

Links the videos into the layout of Something-Else, in VIDEOS-linked; every fifth is for validation.
Without arguments, training is short, on videos of a moving square made in a temporary folder.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

SHORT = "--pretrain-clips 64 --finetune-clips 64 --num-frames 4 --num-query-frames 2 --no-pictures"


def train(videos: Path, flags: list[str]) -> None:
    """Link the videos, write the split files and the labels, and train."""
    data = videos.with_name(f"{videos.name}-linked")
    links, splits = data / "20bn-something-something-v2", data / "dataset_splits/compositional"
    links.mkdir(parents=True, exist_ok=True)
    splits.mkdir(parents=True, exist_ok=True)
    paths = sorted(videos.glob("*/*"))
    for number, path in enumerate(paths):
        link = links / f"{number}.webm"  # whatever the file's format is
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    entries = [{"id": str(n), "template": path.parent.name} for n, path in enumerate(paths)]
    labels = {name: n for n, name in enumerate(sorted({e["template"] for e in entries}))}
    training = [entry for entry in entries if int(entry["id"]) % 5]
    for name, rows in (("train", training), ("validation", entries[::5]), ("labels", labels)):
        (splits / f"{name}.json").write_text(json.dumps(rows))
    flags = ["--data", f"something-else:{data}", *flags]
    subprocess.run([sys.executable, "-m", "ivcl_fast.train", *flags], check=True)


def make_videos(folder: Path) -> Path:
    """Twenty videos of a moving square."""
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
