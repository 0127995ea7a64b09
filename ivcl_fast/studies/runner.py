"""Run a study: a training run for every variant and seed, then a table of the results.

Every run is a separate process that continues where it stopped, so the same command continues a
study.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError, require_at_least
from ivcl_fast.files import locked
from ivcl_fast.models.weights import MODEL
from ivcl_fast.progress import duration
from ivcl_fast.report import study as study_report
from ivcl_fast.report.run import REPORT, SCORES
from ivcl_fast.studies.definitions import STUDIES, Study, Variant, flag_name, study_of_flag
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run_folder import changed_settings, has_progress
from ivcl_fast.training.settings import TrainConfig, load_settings

POLL_SECONDS = 0.2
"""Interval at which the processes of runs are polled."""

SET_BY_STUDY = {
    "name", "out", "stage", "init", "seed", "resume", "overwrite", "pictures",
    "compare-memoryless",
}  # fmt: skip
"""Flags of ``ivcl_fast.train`` that every study sets itself."""


@dataclass(frozen=True)
class Job:
    """A training run of a study."""

    folder: Path
    flags: tuple[str, ...]
    results: tuple[str, ...]
    """Files that exist in the folder of a finished run; the last one is written last."""
    clips: int
    """Number of clips that it trains on, for the time left."""

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``ivcl_fast.train``."""
        return [*self.flags, "--out", str(self.folder.parent), "--name", self.folder.name]

    @property
    def done(self) -> bool:
        return all((self.folder / name).is_file() for name in self.results)


def plan_jobs(
    study: Study, folder: Path, seeds: int, common: tuple[str, ...], pretrainings: int = 1
) -> tuple[list[Job], list[Job]]:
    """Return the jobs that pretrain, and those that finetune.

    With several pretrainings of a variant, the seeds of finetuning alternate between them.
    ``common``: flags of all runs. Variants with the same settings of pretraining share it.
    """
    pretrained: dict[TrainConfig, Job] = {}
    finetunings = []
    for variant in study.variants:
        own = folder / variant_folder(variant)
        flags = *common, "--no-pictures", *shlex.split(f"{variant.data} {variant.model}")
        starts = ["random"]
        if variant.pretrain is not None:
            starts = []
            stage = *flags, *shlex.split(f"{variant.pretrain} --stage pretrain")
            for seed in range(pretrainings):
                pretrain = *stage, "--seed", str(seed)
                name = f"pretrained-{seed}" if seed else "pretrained"
                config = parse(pretrain)
                results = f"pretrain/{MODEL}", REPORT
                job = Job(own / name, pretrain, results, sum(config.stages.clips.values()))
                starts.append(str(pretrained.setdefault(config, job).folder / "pretrain"))
        stage = *flags, "--no-compare-memoryless", *shlex.split(variant.finetune)
        stage += "--stage", "finetune"
        if variant.finetune_scale > 1:
            clips = variant.finetune_scale * parse(flags).stages.finetune_clips
            stage += "--finetune-clips", str(clips)
        clips = sum(parse((*stage, "--init", starts[0])).stages.clips.values())
        for seed in range(seeds):
            finetune = *stage, "--init", starts[seed % len(starts)], "--seed", str(seed)
            finetunings.append(Job(own / f"seed-{seed}", finetune, (SCORES,), clips))
    return list(pretrained.values()), finetunings


def variant_folder(variant: Variant) -> Path:
    """Return a variant's folder, relative to the study's; a variant's data set adds a level."""
    parts = variant.data, variant.label
    return Path(*(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts if part))


def time_left(seconds: dict[Job, float], study: list[Job], parallel: int) -> float:
    """Estimate the seconds that the unfinished jobs of a study take, ``parallel`` at a time.

    ``seconds``: what finished jobs took, at least one; the others take as long per clip.
    """
    clips = sum(job.clips for job in study if job not in seconds and not job.done)
    return clips * sum(seconds.values()) / sum(job.clips for job in seconds) / parallel


def run_jobs(
    jobs: list[Job], parallel: int, gpus: int, study: list[Job], seconds: dict[Job, float]
) -> None:
    """Run unfinished jobs in separate processes, ``parallel`` at a time.

    Each gets a GPU, or an equal share of the CPU cores. If a job fails or a signal arrives, all
    jobs save a checkpoint and stop. ``study``: all jobs, for messages such as ``run 7/20``.
    ``seconds``: what each job took; those of ``jobs`` are added.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // parallel))}
    environment = os.environ | ({} if gpus else threads)
    waiting, free_slots = [job for job in jobs if not job.done], list(range(parallel))
    running: dict[subprocess.Popen[bytes], tuple[Job, int, float]] = {}
    number = {job.folder: f"run {i}/{len(study)}" for i, job in enumerate(study, 1)}
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: signals.append(signum))
    try:
        while waiting or running:
            while waiting and free_slots:
                job, slot = waiting.pop(0), free_slots.pop(0)
                device = ["--device", f"cuda:{slot % gpus}"] if gpus > 1 else []
                command = [sys.executable, "-m", "ivcl_fast.train", *job.arguments, *device]
                job.folder.mkdir(parents=True, exist_ok=True)
                print(f"{number[job.folder]}: {job.folder}", flush=True)
                if parallel == 1:
                    process = subprocess.Popen(command, env=environment)
                else:
                    with open(job.folder / "log.txt", "ab") as log:
                        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                running[process] = job, slot, time.monotonic()
            for process in [process for process in running if process.poll() is not None]:
                job, slot, start = running.pop(process)
                free_slots.append(slot)
                if process.returncode:
                    where = "above" if parallel == 1 else "log.txt"
                    status = process.returncode
                    raise UserError(f"{job.folder}: exited with status {status}; see {where}")
                seconds[job] = time.monotonic() - start
                done = f"{number[job.folder]}: done in {duration(seconds[job])}"
                if left := time_left(seconds, study, parallel):
                    done += f", about {duration(left)} left"
                print(f"{done}, {job.folder}", flush=True)
            if signals:
                raise distributed.Interrupted(signals[0])
            time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class SweepConfig:
    """Flags of ``ivcl_fast.sweep``."""

    # With unknown flags, tyro parses an optional positional that is not a tuple as the text "[]".
    study: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[STUDY]", help_behavior_hint=""),
    ] = ()
    """Name of the study; see above."""
    vary: Annotated[str | None, tyro.conf.arg(metavar="FLAG=A,B,...", help_behavior_hint="")] = None
    """Instead of a study: compare these values of any flag of ivcl_fast.train, such as
    num-slots=2,4,8."""
    seeds: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 3, with --quick 1)"),
    ] = None
    """Number of finetunings of every variant."""
    pretrainings: int = 1
    """Number of pretrainings of every variant; its seeds of finetuning alternate between them."""
    parallel: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: one per GPU, one on a CPU)"),
    ] = None
    """Number of runs at a time."""
    out: Path = Path("sweeps")
    """Folder that holds the studies."""


def run_study(config: SweepConfig, common: tuple[str, ...]) -> Path:
    """Run a study and write its table; return its folder, which is in ``config.out``.

    ``common``: flags of ``ivcl_fast.train`` for every run. Finished runs are kept. Raises
    :class:`UserError` for flags that the study sets itself, and for runs with other settings.
    """
    if (ranks := distributed.world_size()) > 1:  # they would wait for each other's lock
        raise UserError(
            f"WORLD_SIZE: expected 1, got {ranks}; ivcl_fast.sweep gives each GPU a run of its own"
        )
    (name, study), pretrainings = chosen_study(config), config.pretrainings
    require_at_least(config, 1, "seeds", "pretrainings", "parallel")
    settings = parse(common)  # also raises errors before any work
    seeds = config.seeds or (pretrainings if settings.quick else 3)
    if pretrainings > seeds:
        raise UserError(f"--pretrainings: expected at most --seeds ({seeds}), got {pretrainings}")
    if settings.quick:
        study = study.quick()
    check_flags(name, study, common)
    flags = study.flags(common)
    # If --device names the GPU to use, the runs share it.
    gpus = torch.cuda.device_count() if settings.speed.device in ("auto", "cuda") else 0
    folder = config.out / (name + ("-quick" if settings.quick else ""))
    stages = plan_jobs(study, folder, seeds, flags, pretrainings)
    for job in chain(*stages):
        if has_progress(job.folder) and (changed := changed_settings(parse(job.arguments))):
            raise UserError(
                f"--out: {job.folder} holds a run with other settings ({', '.join(changed)}); "
                "choose another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, busy="run"):
        start, jobs = time.monotonic(), [*chain(*stages)]
        seconds: dict[Job, float] = {}
        for stage in stages:
            run_jobs(stage, config.parallel or max(1, gpus), gpus, jobs, seconds)
        print(f"{len(jobs)} runs done; this took {duration(time.monotonic() - start)}", flush=True)
        folders: study_report.Folders = {}
        for variant in study.variants:
            runs = [folder / variant_folder(variant) / f"seed-{seed}" for seed in range(seeds)]
            data = load_settings(runs[0]).data  # variants that share it can be compared
            folders.setdefault(f"{data.task} on {data.source}", {})[variant.label] = runs
        asked = [f"--vary={config.vary}"] if config.vary else [name]
        command = [*asked, *common, "--seeds", str(seeds)]
        if pretrainings > 1:
            command += "--pretrainings", str(pretrainings)
        about = study.question, study.varied
        study_report.write(folder, *about, folders, command, seeds, pretrainings)
    return folder


def chosen_study(config: SweepConfig) -> tuple[str, Study]:
    """Return the study that the flags name or describe, and its name."""
    if config.vary is not None and not config.study:
        name, study = study_of_flag(config.vary)
        if study.own_flags & SET_BY_STUDY:
            raise UserError(f"--vary: expected no flag that studies set, got {config.vary!r}")
        return name, study
    if config.vary is not None or len(config.study) != 1:
        raise UserError("STUDY: expected the name of one study, or --vary FLAG=A,B,...")
    name = config.study[0]
    if name not in STUDIES:
        raise UserError(f"STUDY: expected one of {', '.join(STUDIES)}, got {name!r}")
    return name, STUDIES[name]


def check_flags(name: str, study: Study, common: tuple[str, ...]) -> None:
    """Raise :class:`UserError` for flags of ``ivcl_fast.train`` that the study sets itself."""
    own = SET_BY_STUDY | study.own_flags
    for flag in common:
        if flag.startswith("--") and flag_name(flag) in own:
            raise UserError(f"{flag}: the study {name} sets this itself")
