"""``prepare --engine ray`` on two nodes of one CPU, one of which dies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ivcl_fast.data.store import shards
from ivcl_fast.data.store.build import build_part, build_store
from ivcl_fast.data.store.shards import Part
from tests.data.store.test_build import Painted
from tests.data.store.test_frame_store import contents

ray = pytest.importorskip("ray", reason="Ray is not installed")
SIZES = 32, 8


class Fragile(Painted):
    """Stays forever with its first clip on one node."""

    def __init__(self, names: Sequence[str], node: str, flag: Path) -> None:
        super().__init__(names)
        self.node, self.flag = node, flag

    def only(self, names: Sequence[str]) -> Fragile:
        return Fragile(names, self.node, self.flag)

    def frames(self, name: str, image_size: int) -> Iterator[torch.Tensor]:
        if ray.get_runtime_context().get_node_id() == self.node:
            self.flag.touch()
            time.sleep(1000)
        yield from super().frames(name, image_size)


def test_the_same_store_though_a_node_dies(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(shards, "SHARDS", 6)
    names = [str(i) for i in range(24)]
    alone = build_store(Painted(names), tmp_path / "alone", *SIZES, workers=1)
    small = dict(num_cpus=1, object_store_memory=80 << 20)
    cluster = Cluster(initialize_head=True, head_node_args=small)
    doomed = cluster.add_node(resources={"doomed": 1}, **small)

    def kill() -> None:
        while not flag.exists():
            time.sleep(0.1)
        cluster.remove_node(doomed, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        node = next(one["NodeID"] for one in ray.nodes() if "doomed" in one["Resources"])
        flag = tmp_path / "flag"
        with ThreadPoolExecutor(1) as thread:
            killed = thread.submit(kill)
            source = Fragile(names, node, flag)
            assert build_part(Part(0, 1), source, tmp_path / "ray", SIZES, engine="ray") == 0
            killed.result()
        assert contents(tmp_path / "ray") == contents(alone.path)
    finally:
        ray.shutdown()
        cluster.shutdown()
