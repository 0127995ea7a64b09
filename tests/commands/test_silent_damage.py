"""A changed byte in a file of ours is named in one line, or changes no result.

``IVCL_FAST_FUZZ=2000`` sets how many changes there are in all.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivcl_fast import IVCLClassifier, manifest
from ivcl_fast.data.formats.acre import Acre
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.formats.something_else import SomethingElse
from ivcl_fast.data.store import build as building
from ivcl_fast.data.store.build import build_store
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.plan import read_plan
from ivcl_fast.data.store.shards import finished_shard
from ivcl_fast.data.stream_index import saved_index
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, write_acre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.data.synthetic.something_else.write import (
    SyntheticSomethingElse,
    write_something_else,
)
from ivcl_fast.data.synthetic.writer import read_spec
from ivcl_fast.errors import UserError
from ivcl_fast.manifest import MANIFEST, Manifest, record
from ivcl_fast.models.weights import read_weights
from ivcl_fast.report.study_results import read_answers
from ivcl_fast.train import main as train_main
from ivcl_fast.training.classes import Classes
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.settings import load_settings
from tests.support.painted import media, write_painted
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

COUNT = int(os.environ.get("IVCL_FAST_FUZZ", 400))


def changed(whole: bytes, draw: random.Random) -> bytes:
    """Return a copy with a flipped bit, another byte, a byte more or less, or a part cut off."""
    contents, at = bytearray(whole), draw.randrange(len(whole))
    kind = draw.randrange(6)
    if kind < 2:
        contents[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        contents[at] = draw.choice(b'0123456789"[]{},. ')
    elif kind == 3:
        del contents[at]
    elif kind == 4:
        contents.insert(at, draw.choice(b"0123456789ae-. "))
    else:
        del contents[at:]
    return bytes(contents)


Reader = Callable[[], Any]


@pytest.fixture
def readers(tmp_path, command) -> dict[Path, Reader]:
    """How each file is read."""
    cater = write_cater(tmp_path / "cater", SyntheticCater(train=6, val=4), 1)
    flags = ["--data", f"cater:{cater}", *RUN_FLAGS, *FRAME_FLAGS, "--out", tmp_path]
    assert command(train_main, *flags, "--name", "run", "--no-pictures")[0] == 0
    run = tmp_path / "run"

    def model() -> Any:
        found = IVCLClassifier.from_pretrained(run / "finetune")
        return vars(found.cfg), found.class_names, found.training_record

    def index() -> Any:
        found, bad_files = saved_index(videos, tmp_path / "index", 1)
        return {n: (v.info, np.array(v.places).tolist()) for n, v in found.items()}, bad_files

    def plan() -> Any:
        return read_plan(half / "plan.json")

    acre = write_acre(tmp_path / "acre", SyntheticAcre(train=1, val=1, test=1), 1)
    other = write_something_else(tmp_path / "se", SyntheticSomethingElse(train=2, val=1), 1)
    half = half_built(tmp_path)
    videos = [media(tmp_path / "v0.avi"), media(tmp_path / "v1.avi"), media(tmp_path / "none.avi")]
    index()
    store = build_store([media(tmp_path / "v0.avi")], tmp_path / "whole", 32, 8, "pyav", 1).path
    scene = sorted((cater / "scenes").iterdir())[0]
    splits = other / "dataset_splits" / "compositional"
    return {
        run / "config.json": lambda: load_settings(run),
        run / "answers.json": lambda: Classes.read(run),
        run / "metrics.jsonl": lambda: MetricsLog(run).read(),
        run / "scores.json": lambda: read_answers(run / "scores.json"),
        run / "clips.json": lambda: read_answers(run / "clips.json"),
        run / MANIFEST: lambda: load_settings(run),
        run / "finetune" / "config.json": model,
        run / "finetune" / "SHA256SUMS": model,
        run / "finetune" / "model.safetensors": lambda: {
            name: tensor.tolist() for name, tensor in read_weights(run / "finetune").items()
        },
        scene: lambda: Cater(cater).scene(scene.stem),
        cater / "lists" / "localize" / "val.txt": lambda: Cater(cater).clips("val"),
        cater / "synthetic.json": lambda: read_spec(cater),
        cater / MANIFEST: lambda: Cater(cater).clips("val"),
        acre / "config" / "test.json": lambda: Acre(acre).problems("test"),
        splits / "labels.json": lambda: vars(SomethingElse(other))["_labels"],
        splits / "train.json": lambda: SomethingElse(other).clips("train"),
        half / "plan.json": plan,
        half / "shard-00000.json": lambda: finished_shard(half / "shard-00000.u8"),
        store / "meta.json": lambda: vars(FrameStore(store))["_files"],
        store / "index.json": lambda: FrameStore(store).names,
        store / "bad_files.json": lambda: FrameStore(store).bad_files,
        tmp_path / "index" / "index.json": index,
        tmp_path / "index" / "places.npy": index,
    }


def half_built(folder: Path) -> Path:
    """Stop a build when its shards are finished."""
    videos = [media(write_painted(folder / f"v{i}.avi", i, 5)) for i in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_store(videos, folder / "half", 32, 8, "pyav", 1)
    return folder / "half"


def test_no_change_is_silent(readers):
    draw = random.Random(0)
    outcomes: Counter[str] = Counter()
    for file, read in readers.items():
        whole, right = file.read_bytes(), read()
        for number in range(COUNT // len(readers)):
            if (contents := changed(whole, draw)) == whole:
                continue
            file.write_bytes(contents)
            try:
                found = read()
            except UserError as error:
                outcomes["named"] += 1
                assert "\n" not in str(error), (file, number)
            else:  # a shard whose record is damaged is built again
                assert found == right or found is None, (file, number, contents)
                outcomes["the same result" if found == right else "made again"] += 1
        file.write_bytes(whole)
        assert read() == right
    print(outcomes)
    assert outcomes["named"] > COUNT / 2


def test_old_folders_without_a_manifest_are_read(readers):
    expected = {file: read() for file, read in readers.items()}
    for file in readers:
        if file.name in (MANIFEST, "SHA256SUMS"):
            file.unlink()
    kept = {file: read for file, read in readers.items() if file.exists()}
    assert {file: read() for file, read in kept.items()} == {f: expected[f] for f in kept}


def test_records_may_grow_but_not_shrink(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("pretrain", 1, 4, loss=0.5)
    log.sync()
    log.write("pretrain", 2, 8, loss=0.4)
    assert [r["step"] for r in log.read()] == [1, 2]
    text = log.path.read_text()
    log.path.write_text(text + '{"stage": "pre')  # killed while it wrote
    assert [r["step"] for r in log.read()] == [1, 2]
    log.path.write_text(text[: text.index("\n") // 2])
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged: it does not match"):
        log.rewind("pretrain", 1)
    log.path.write_text(text + "null\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3: damaged"):
        log.read()


def test_records_may_grow_while_they_are_read(tmp_path, monkeypatch):
    """A command looks at a run that trains: it logs and saves after either file was read."""
    log, read_bytes = MetricsLog(tmp_path), manifest.read_bytes
    log.write("pretrain", 1, 4, loss=0.5)
    log.sync()

    def read_and_train(path: Path) -> bytes:
        content = read_bytes(path)
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "read_bytes", read_bytes)
            log.write("pretrain", 2, 8, loss=0.4)
            log.sync()
        return content

    monkeypatch.setattr(manifest, "read_bytes", read_and_train)
    assert [r["step"] for r in log.read()] == [1, 2]


def test_verifying_names_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    record(tmp_path / "a.txt")
    Manifest.read(tmp_path).verify()
    for changed in ("b", "ab"):
        (tmp_path / "a.txt").write_text(changed)
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'a.txt'}: damaged")):
            Manifest.read(tmp_path).verify()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match="No such file"):
        Manifest.read(tmp_path).verify()


def test_a_file_is_on_the_disk_before_it_is_recorded(tmp_path, monkeypatch):
    """After a power cut, a file that lacks its end would be refused as damaged."""
    recorded_when_flushed = {}

    def spy(path: Path) -> None:
        recorded_when_flushed[path.name] = path.name in Manifest.read(tmp_path).files

    (tmp_path / "metrics.jsonl").write_text("{}\n")
    monkeypatch.setattr(manifest, "fsync", spy)
    record(tmp_path / "metrics.jsonl")
    assert recorded_when_flushed == {"metrics.jsonl": False}


def test_a_kill_before_a_new_version_is_recorded_damages_nothing(tmp_path, monkeypatch):
    file = tmp_path / "scores.json"
    manifest.write_recorded(file, "old")
    monkeypatch.setattr(manifest, "record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        manifest.write_recorded(file, "new")
    assert json.loads(manifest.read_recorded(file)) == "new"
