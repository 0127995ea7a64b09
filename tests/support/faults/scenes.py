"""What a schedule disturbs: folders as they are before, and the commands that are run on them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivcl_fast.command import run_command
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.shards import META
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.evaluate import main as evaluate_main
from ivcl_fast.models.weights import MODEL
from ivcl_fast.prepare import main as prepare_main
from ivcl_fast.sweep import main as sweep_main
from ivcl_fast.train import main as train_main
from ivcl_fast.training.run_folder import CHECKPOINTS
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

TRAIN = (*RUN_FLAGS, *FRAME_FLAGS, "--no-pictures", "--no-compare-memoryless", "--save-every", "1")
RENDERED = ("--data", "synthetic:cater", "--train-videos", "4", "--val-videos", "2")
STAGES = ("pretrain", "finetune")


@dataclass(frozen=True)
class Scene:
    """One command in one situation; ``{root}`` stands for the folder of the schedule."""

    main: Callable[[], Any]
    arguments: tuple[str, ...]
    has_data: bool = True
    has_store: bool = True
    has_run: bool = False
    """Whether a finished run is there."""
    folder: str = "runs/run"
    """A folder that is made before the command, so that strangers may have files there."""
    ranks: int = 1
    weight: int = 1
    """How often it is drawn."""

    def start(self, root: Path) -> tuple[Callable[[], Any], list[str]]:
        """The function and the arguments of each process."""
        return lambda: run_command(self.main), [a.format(root=root) for a in self.arguments]

    def set_up(self, template: Path, root: Path) -> None:
        """Make the folder as it is before the first command."""
        (root / self.folder).mkdir(parents=True)
        if self.has_run:
            shutil.copytree(template / "runs", root / "runs", dirs_exist_ok=True)
        if self.has_data:
            shutil.copytree(template / "cater", root / "cater")
            if not self.has_store:
                shutil.rmtree(root / "cater" / STORE)


QUICK = (
    "--quick", "--seeds", "1", *RUN_FLAGS, "--batch-size", "2", "--pretrain-clips", "4",
    "--finetune-clips", "4",
)  # fmt: skip
STORE = "store-16-p8-pyav"
RENDERED_TO = "synthetic-cater-embedded-static-4-2"
DATA = ("--data", "cater:{root}/cater")
RUN = ("--out", "{root}/runs", "--name", "run")
PREPARE = ("cater:{root}/cater", "--image-size", "16", "--workers", "1")
SCENES = {
    "train": Scene(train_main, (*TRAIN, *DATA, *RUN), weight=4),
    "build": Scene(
        train_main, (*TRAIN, *DATA, *RUN, "--stage", "pretrain"), has_store=False, weight=2
    ),
    "stream": Scene(
        train_main, (*TRAIN, *DATA, *RUN, "--stage", "pretrain", "--loader", "stream"),
        has_store=False,
    ),
    "render": Scene(
        train_main, (*TRAIN, *RENDERED, "--data-dir", "{root}", *RUN, "--stage", "pretrain"),
        has_data=False, has_store=False, folder=RENDERED_TO,
    ),
    "prepare": Scene(prepare_main, PREPARE, has_store=False),
    "ranks": Scene(train_main, (*TRAIN, *DATA, *RUN), ranks=2),
    "sweep": Scene(
        sweep_main, ("encoder", *QUICK, *DATA, "--out", "{root}/sweeps"),
        folder="sweeps/encoder-quick/joint/seed-0",
    ),
    "evaluate": Scene(
        evaluate_main, ("{root}/runs/run", *DATA, "--out", "{root}/runs/evaluation.json"),
        has_run=True,
    ),
    "predict": Scene(
        evaluate_main,
        ("{root}/runs/run", "--predict", "{root}/cater/videos", "--out", "{root}/runs/answers.csv"),
        has_store=False, has_run=True,
    ),
}  # fmt: skip


def verifying(data: Path) -> Scene:
    """The command that compares the checksums of a data set and its store."""
    arguments = (f"cater:{data}", *PREPARE[1:], "--verify")
    return Scene(prepare_main, arguments)


def write_template(folder: Path) -> None:
    """Write the data set that the scenes begin with; commands make its store and the run."""
    write_cater(folder / "cater", SyntheticCater(train=6, val=4), 1)


def contents(root: Path) -> dict[str, Any]:
    """What all runs of a scene have to leave: its files, without times and the folder's name.

    The value is None where only the existence counts.
    """
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if "tensorboard" in name:
            continue
        if path.parent.name == STORE:  # has times of files, and numbers shards as it is built
            name = re.sub(r"/shard-\d+", "/shard", name)
            found[name] = found.get(name, 0) + 1
            if path.name == META:
                store = FrameStore(path.parent)
                found[f"frames of {name}"] = {n: frames_of(store, n) for n in store.names}
            continue
        if (
            path.is_dir()
            or path.parent.name == "index"
            or path.suffix == ".png"
            or path.name in ("report.md", "ivcl_manifest.json")
        ):
            found[name] = None
        elif path.name == "metrics.jsonl":
            found[name] = [curve(line) for line in path.read_text().splitlines()]
        else:
            found[name] = path.read_bytes().replace(str(root).encode(), b"ROOT")
    return found


def frames_of(store: FrameStore, name: str) -> str:
    """A digest of all frames of media."""
    return hashlib.sha256(store.rows(name, range(store.num_frames(name))).data).hexdigest()


def curve(line: str) -> dict[str, Any]:
    """A line of ``metrics.jsonl`` without what depends on the machine."""
    record = json.loads(line)
    return {k: v for k, v in record.items() if k not in ("clips_per_second", "data_wait")}


def progress(root: Path) -> dict[Path, int]:
    """Steps that each stage has saved; a finished one has saved more than any number."""
    found = {}
    for stage in (path for name in STAGES for path in root.rglob(name)):
        names = [path.name.removeprefix("step-") for path in stage.glob(f"{CHECKPOINTS}/step-*")]
        steps = [int(name) for name in names if name.isdigit()]
        found[stage] = 10**9 if (stage / MODEL).is_file() else max(steps, default=0)
    return found
