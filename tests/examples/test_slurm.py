"""The Slurm scripts in ``examples/slurm``, on a real Slurm of one node that the tests start.

They wait minutes for Slurm, which needs root and the sockets of the machine, so they run only when
asked for, in one process: ``IVCL_FAST_TEST_SLURM=1 python -m pytest tests/examples/test_slurm.py``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.training.metrics_log import MetricsLog
from tests.support.short_run import ENVIRONMENT, ROOT

SCRIPTS = ROOT / "examples" / "slurm"
PROGRAMS = "slurmctld", "slurmd", "sbatch", "scontrol"
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif("IVCL_FAST_TEST_SLURM" not in os.environ, reason="IVCL_FAST_TEST_SLURM"),
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: install slurm-wlm"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/slurm
CredType=auth/slurm
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=300
PartitionName=urgent Nodes={host} State=UP PriorityTier=2
"""
"""A requeued job starts again when its credential has expired, by default after two minutes."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a Slurm; give the environment of its programs."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(2)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "slurm.key").write_bytes(os.urandom(1024))
    (folder / "slurm.key").chmod(0o600)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | ENVIRONMENT | {"SLURM_CONF": str(configuration), "PATH": path}
    with open(folder / "log", "w") as log:
        options = {"env": environment, "stdout": log, "stderr": log}
        daemons = [
            subprocess.Popen(["slurmctld", "-D", "-i"], **options),
            subprocess.Popen(["slurmd", "-D", "-N", host], **options),
        ]
        try:
            wait_until(lambda: b"idle" in output(["sinfo", "--noheader"], environment))
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait()


def output(command: list[str], environment: dict[str, str]) -> bytes:
    return subprocess.run(command, env=environment, capture_output=True).stdout


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for at most ten minutes."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.5)


def submit(environment: dict[str, str], folder: Path, *arguments: object) -> str:
    """Submit a job and return its number."""
    command = ["sbatch", "--parsable", "--output=log", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def is_done(job: str, environment: dict[str, str]) -> bool:
    shown = output(["scontrol", "show", "job", job], environment)
    assert b"JobState=FAILED" not in shown, "see the job's log"
    return b"JobState=COMPLETED" in shown


@pytest.mark.parametrize("reason", ["time limit", "preemption"])
def test_training_that_is_stopped_continues_by_itself(slurm, tmp_path, reason):
    """After the signal that precedes the time limit, and after a job of a better partition."""
    write_dataset(tmp_path / "cater", SyntheticCater(train=4, val=2), workers=1)
    flags = "--quick", "--stage", "pretrain", "--name", "run", "--pretrain-clips", "640"
    more = "--data", "cater:cater", "--save-every", "10", "--batch-size", "4"
    job = submit(slurm, tmp_path, SCRIPTS / "train.sbatch", *flags, *more)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    wait_until(lambda: is_done(job, slurm) or has_lines(metrics, 2))
    if reason == "time limit":
        subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=slurm, check=True)
    else:
        flags = "--partition=urgent", "--cpus-per-task=2", "--output=urgent", "--wrap=true"
        submit(slurm, tmp_path, *flags)
    log = tmp_path / "log"
    wait_until(lambda: "resuming from step" in log.read_text() or is_done(job, slurm))
    wait_until(lambda: is_done(job, slurm))
    said = log.read_text()
    assert "--resume" in said and "resuming from step" in said, said
    steps = [record["step"] for record in MetricsLog(metrics.parent, viewer="none").read()]
    assert steps == sorted(set(steps)) and len(steps) > 2


def has_lines(file: Path, count: int) -> bool:
    return file.is_file() and file.read_text().count("\n") >= count


def test_an_array_of_jobs_builds_a_store(slurm, tmp_path):
    write_dataset(tmp_path / "cater", SyntheticCater(train=4, val=2), workers=1)
    job = submit(
        slurm, tmp_path, "--array=1-2", SCRIPTS / "prepare.sbatch", "cater:cater", "--out", "store"
    )
    wait_until(lambda: output(["squeue", "--noheader", f"--jobs={job}"], slurm).strip() == b"")
    assert (tmp_path / "store" / "index.safetensors").is_file(), (tmp_path / "log").read_text()
