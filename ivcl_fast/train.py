"""``python -m ivcl_fast.train``: pretrain, finetune and evaluate a model, and write a report.

Examples:

  python -m ivcl_fast.train --compile                         # synthetic CATER
  python -m ivcl_fast.train --data videos:DIR                 # your own videos
  python -m ivcl_fast.train --data cater:DIR --preset base64  # a large model

The same command, or ``--resume RUN``, continues a run that was stopped. Flags may use dashes or
underscores.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack

import torch

from ivcl_fast.analysis.finished_runs import FinishedRun, label_note, origin
from ivcl_fast.command import run_command
from ivcl_fast.data.dataset import describe_splits
from ivcl_fast.distributed import group as distributed
from ivcl_fast.evaluation.baselines import LAST_FRAME, untrained_baselines
from ivcl_fast.evaluation.evaluate import Evaluation, Result
from ivcl_fast.kernels import unsupported_reason
from ivcl_fast.models import backbone
from ivcl_fast.report.film import films
from ivcl_fast.report.run import write_report
from ivcl_fast.report.tables import results_table
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.model_card import measured_videos_seen, videos_seen
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.run import Run
from ivcl_fast.training.run_folder import check_folder, opened_folder
from ivcl_fast.training.settings import TrainConfig

FEW_STEPS = 100
"""Stages with fewer steps log a warning."""


def train(config: TrainConfig) -> None:
    """Train and evaluate; write models, a report and a page to the run's folder.

    Raises :class:`UserError` for data or weights that cannot be used, and
    :class:`~ivcl_fast.distributed.group.Interrupted` after SIGINT or SIGTERM, once a checkpoint is
    written.
    """
    run = Run(config)
    begins = "finetune" if config.stages.stage == "finetune" else "pretrain"
    if config.stages.init != "random" and not run.finished(begins):
        backbone.check_source(config.stages.init)
    arithmetic = "bf16" if run.amp else "float32"
    others = ""
    if (world := distributed.world_size()) > 1:
        kind = "shards, FSDP2" if config.speed.shard else "replicas, DDP"
        others = f" and {world - 1} more ({kind})"
    distributed.print_rank0(f"run: {run.folder}, on {run.device}{others}, {arithmetic}")
    if reason := unsupported_reason(run.device):
        distributed.print_rank0(f"kernels: plain PyTorch, which is slower, because {reason}")
    with distributed.process_group(run.device), run.metrics, ExitStack() as stack:
        with distributed.main_process_first():
            data = run.data
        warn_of_few_steps(run)
        if seen := measured_videos_seen(config):
            distributed.print_rank0(
                f"--init: scores will be too high, because its model was trained on {seen} of the "
                f"{config.data.val_videos} validation videos; for fair scores, use "
                f"--train-videos {videos_seen(config.stages.init)}"
            )
        run.check_batches()
        with distributed.main_process_first():
            stack.enter_context(opened_folder(config))
        distributed.print_rank0(f"data: {config.data.task}, {describe_splits(data.dataset)}")
        if run.finetunes:
            _ = run.classes  # raises before pretraining if the classes have changed
        elif not data.num_classes:
            distributed.print_rank0(f"{config.data.source} has no classes: pretraining only")
        init = config.stages.init
        if config.stages.stage == "finetune" and init == "random":
            distributed.print_rank0("--stage finetune: starts from random weights without --init")
        if "pretrain" in config.stages.clips:
            run.pretrain()
            init = str(run.folder / "pretrain")
        results: list[Result] = []
        evaluation = None
        if run.finetunes:
            model = run.finetune(init)
            distributed.print_rank0(f"evaluating on {data.eval_split}")
            evaluation = run.evaluate(model)
            note = ", trained on validation videos" if seen else ""
            results = [evaluation.result(origin(config) + label_note(config) + note)]
            if config.stages.compare_memoryless:
                results += baselines(run, init, evaluation)
        if distributed.is_main():
            if results:
                results_table(results).print("95 % intervals in brackets")
            finished = FinishedRun(run.config, data)
            write_report(finished, results, evaluation)
            print(f"report: {run.folder / 'report.md'}")
            if config.output.pictures:
                if config.output.viewer != "none":
                    stage = "finetune" if run.finetunes else "pretrain"
                    clips = config.stages.clips[stage]
                    run.metrics.show(stage, clips, films(finished, evaluation))
                print(f"open: {run.folder / 'report.html'}")


def warn_of_few_steps(run: Run) -> None:
    """Warn about a stage with too few steps to learn, for example because batches are large."""
    size = run.config.optim.batch_size
    for stage, clips in run.config.stages.clips.items():
        steps = Schedule(clips, batch_size=size).steps
        if steps < FEW_STEPS and not run.config.quick:
            distributed.print_rank0(
                f"--{stage}-clips: {clips} are {steps} steps of {size}, too few to learn much"
            )


def baselines(run: Run, init: str, evaluation: Evaluation) -> list[Result]:
    """Evaluate models without memory or reasoning."""
    results = []
    if run.data.asks_for_snitch:
        last = run.evaluate(run.last_frame(init))
        results.append(last.result(LAST_FRAME + label_note(run.config)))
    split, frames = run.data.eval_split, run.config.model.num_frames
    return results + untrained_baselines(run.data, split, evaluation, frames)


def main() -> None:
    logging.getLogger("ivcl_fast").setLevel(logging.INFO)
    torch.set_float32_matmul_precision("highest")  # no TF32
    train(check_folder(parse(sys.argv[1:], __doc__)))


if __name__ == "__main__":
    run_command(main, continues=True)
