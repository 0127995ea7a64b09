"""Run a study: a training run for every variant and seed, then one table of them all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import Queue
from threading import Event, Lock

import torch

from ivcl_fast.errors import UserError
from ivcl_fast.models.weights import MODEL
from ivcl_fast.report import study as study_report
from ivcl_fast.report.run import SCORES
from ivcl_fast.studies.definitions import Study, Variant, flag_name, study_named
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.loop import Interrupted
from ivcl_fast.training.run_folder import differing, has_begun, resolve
from ivcl_fast.training.settings import TrainConfig

OWN = {
    "name", "out", "stage", "init", "seed", "resume", "overwrite", "pictures",
    "compare-memoryless", "compare-scratch",
}  # fmt: skip
"""Flags of ``ivcl_fast.train`` that a study sets itself."""


@dataclass(frozen=True)
class Job:
    """One call of ``ivcl_fast.train``."""

    folder: Path
    flags: tuple[str, ...]
    result: str
    """The file in its folder that says that it is done."""

    @property
    def done(self) -> bool:
        return (self.folder / self.result).is_file()

    @property
    def arguments(self) -> list[str]:
        return [*self.flags, "--out", str(self.folder.parent), "--name", self.folder.name]


def jobs(
    study: Study, folder: Path, seeds: int, common: tuple[str, ...]
) -> tuple[list[Job], list[Job]]:
    """Pretrainings, then the finetunings that start from them; ``common``: flags of all runs."""
    first: dict[TrainConfig, Job] = {}  # what is equal is pretrained once
    then = []
    for variant in study.variants:
        own = folder / slug(variant)
        data = () if variant.data is None else ("--data", variant.data)
        task = () if variant.task is None else ("--task", variant.task)
        flags = *common, "--no-pictures", *data, *variant.model
        init = "random"
        if variant.pretrain is not None:
            pretrain = *flags, *variant.pretrain, "--stage", "pretrain"
            job = Job(own / "pretrained", pretrain, f"pretrain/{MODEL}")
            init = str(first.setdefault(parse(pretrain), job).folder / "pretrain")
        for seed in range(seeds):
            finetune = *flags, *task, "--no-compare-memoryless", *variant.finetune
            finetune += "--stage", "finetune", "--init", init, "--seed", str(seed)
            then.append(Job(own / f"seed-{seed}", finetune, SCORES))
    return list(first.values()), then


def slug(variant: Variant) -> Path:
    """Where a variant is kept in the study's folder: by data set and task, if it has its own."""
    parts = " ".join(filter(None, (variant.data, variant.task))), variant.label
    return Path(*(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts if part))


def run_jobs(todo: list[Job], parallel: int) -> None:
    """Run what is not done: here one after another, or several at a time, a process each."""
    todo = [job for job in todo if not job.done]
    if parallel > 1:
        return run_at_once(todo, parallel)
    from ivcl_fast.train import train

    for job in todo:
        print(f"\n{job.folder}", flush=True)
        train(resolve(parse(job.arguments)))


def run_at_once(todo: list[Job], parallel: int) -> None:
    """A process per job, each with a GPU, or with its share of the CPU's cores.

    When it is stopped, or one of them fails, all stop and keep what they have.
    """
    gpus = torch.cuda.device_count()
    cores = max(1, torch.get_num_threads() // parallel)
    environment = os.environ if gpus else os.environ | {"OMP_NUM_THREADS": str(cores)}
    running: set[subprocess.Popen[bytes]] = set()
    starting, ending = Lock(), Event()  # nothing starts behind the back of who stops all
    free: Queue[int] = Queue()
    for place in range(parallel):
        free.put(place)

    def run(job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        place = free.get()
        device = ["--device", f"cuda:{place % gpus}"] if gpus else []
        command = [sys.executable, "-m", "ivcl_fast.train", *job.arguments, *device]
        with starting, open(job.folder / "log.txt", "ab") as log:
            if ending.is_set():
                return
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            running.add(process)
        print(f"{job.folder}: begins, see log.txt there", flush=True)
        status = process.wait()
        with starting:
            running.remove(process)
        free.put(place)
        if status:
            raise UserError(f"{job.folder}: its run ended with status {status}; see log.txt there")
        print(f"{job.folder}: done", flush=True)

    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    with ThreadPoolExecutor(parallel) as pool:
        before = signal.signal(signal.SIGTERM, stop)
        try:
            for future in as_completed([pool.submit(run, job) for job in todo]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with starting:
                ending.set()
                for process in running:
                    process.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def run_study(
    name: str,
    common: tuple[str, ...],
    out: Path,
    seeds: int = 3,
    parallel: int | None = None,
) -> Path:
    """Run a study, and write its table and figure; returns its folder under ``out``.

    ``seeds``: finetunings of every variant. ``parallel``: runs at a time; by default one per GPU,
    or one on a CPU. ``common``: flags of ``ivcl_fast.train`` for every run. What a stopped call
    finished is not run again. Raises :class:`UserError` for flags that the study sets itself, and
    if runs with other settings are in the way.
    """
    study = study_named(name)
    for option, count in (("seeds", seeds), ("parallel", parallel)):
        if count is not None and count < 1:
            raise UserError(f"--{option}: {count} is not accepted; accepted: at least 1")
    varied = study.varied_flags
    for flag in filter(lambda word: word.startswith("--"), common):
        if flag_name(flag) in OWN:
            raise UserError(f"{flag}: a sweep sets this itself; accepted: other flags of train")
        if study.brings_data and flag_name(flag) in ("data", "task"):
            raise UserError(f"{flag}: the study {name} brings data sets and tasks itself")
        if flag_name(flag) in varied:
            raise UserError(f"{flag}: the study {name} varies this itself")
    quick = parse(common).quick  # and refuses mistakes before any work
    common = study.flags(common, quick)
    folder = out / (name + ("-quick" if quick else ""))
    stages = jobs(study, folder, seeds, common)
    for job in chain(*stages):
        if has_begun(job.folder) and (different := differing(parse(job.arguments))):
            raise UserError(
                f"{job.folder} is of a study with other settings ({', '.join(different)}); "
                "choose another --out"
            )
    for stage in stages:
        run_jobs(stage, parallel or max(1, torch.cuda.device_count()))
    found: study_report.Folders = {}
    for variant in study.variants:
        runs = [folder / slug(variant) / f"seed-{seed}" for seed in range(seeds)]
        found.setdefault(study_report.table_title(runs[0]), {})[variant.label] = runs
    study_report.write(folder, name, study, found, common, seeds)
    return folder
