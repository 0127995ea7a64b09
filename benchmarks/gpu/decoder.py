"""What needs more than torch and Triton: decoding videos, and the main command."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.part import Rows, Sizes, Skip
from benchmarks.race import DEVICE

SECONDS = 90
"""That the main command may take."""


def needs(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise Skip(f"{package} cannot be imported ({error})") from None


def decoder(rows: Rows, sizes: Sizes) -> None:
    """Building stores from Motion-JPEG videos of CATER's format."""
    needs("av")
    from ivcl_fast.data.decode.decoder import default_workers
    from ivcl_fast.data.formats.cater import Cater
    from ivcl_fast.data.store.build import build_store
    from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater

    size = "full" if DEVICE.type == "cuda" else "embedded"
    spec = SyntheticCater(size=size, train=sizes.videos, val=0)
    with tempfile.TemporaryDirectory() as folder:
        media = Cater(write_cater(Path(folder) / "cater", spec)).media()
        for name in ("pyav", "dali"):
            for image_size, patch_size in ((64, 8), (224, 16)):
                with rows.row(name=name, image_size=image_size, videos=len(media)) as row:
                    row["workers"] = default_workers(name)
                    begin = time.perf_counter()
                    out = Path(folder) / f"store-{name}-{image_size}"
                    made = build_store(media, out, image_size, patch_size, decoder=name)
                    row["seconds"] = time.perf_counter() - begin
                    row["frames"] = sum(map(made.num_frames, made.names))
                    row["frames_per_second"] = row["frames"] / row["seconds"]


def train(rows: Rows, sizes: Sizes) -> None:
    """``train --quick --compile --cuda-graph``: everything once."""
    needs("av", "tyro", "tensorboard")
    with tempfile.TemporaryDirectory() as folder, rows.row(command="train --quick") as row:
        command = [
            sys.executable, "-m", "ivcl_fast.train", "--quick", "--compile", "--cuda-graph",
            "--out", f"{folder}/runs", "--data-dir", f"{folder}/data", "--device", DEVICE.type,
        ]  # fmt: skip
        begin = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=os.environ
        )
        row |= {"seconds": time.perf_counter() - begin, "status": done.returncode}
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
