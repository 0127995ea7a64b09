"""A run: its data, its folder, and the stages it goes through."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ivcl_fast.data.datamodule import DataModule, open_data
from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.frame_labels import CLASSES
from ivcl_fast.data.loader import Batch, ClipLoader
from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.dtensor import is_sharded
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import Evaluation, evaluate, frame_scores
from ivcl_fast.files import write_json
from ivcl_fast.models import backbone, flops
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, Supervised
from ivcl_fast.models.weights import MODEL, read_weights
from ivcl_fast.training import checkpoint, step_graph
from ivcl_fast.training.hardware import (
    compile_unsupported_reason,
    peak_flops,
    pick_device,
    tune_malloc,
    use_bf16,
)
from ivcl_fast.training.loop import Loss, MetricsLog, Schedule, Stage, scaled_lr
from ivcl_fast.training.seeds import clip_seeds
from ivcl_fast.training.settings import TrainConfig

EVAL_BATCH = 48
ANSWERS = "answers.json"
"""Name of the file in a run's folder that says what it answers."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a run's classifier tells apart."""

    multi_label: bool
    names: list[str]
    """The classes in words, by number."""

    def __post_init__(self) -> None:
        words = isinstance(self.names, list) and all(isinstance(name, str) for name in self.names)
        if not (isinstance(self.multi_label, bool) and words and self.names):
            raise ValueError("multi_label is not true or false, or names are no list of words")

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, dataset: Dataset) -> Answers:
        """Describe the classes of a data set."""
        names = [dataset.describe(label) for label in range(dataset.num_classes)]
        return cls(dataset.multi_label, names)

    @classmethod
    def read(cls, folder: Path) -> Answers | None:
        """Read what the run in ``folder`` has kept, None if nothing.

        Raises :class:`UserError` if the file is damaged.
        """
        file = folder / ANSWERS
        if not file.is_file():
            return None
        try:
            return cls(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}: not the answers of a run ({error}); delete it to have it written again "
                "from the data set"
            ) from None


class Run:
    """Trains and measures the models of one run; each stage leaves its model in its own folder.

    A stage that was finished before is read from disk, one that was cut short goes on.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = config.folder
        speed = config.speed
        self.device = pick_device(distributed.device_name(speed.device))
        self.amp = use_bf16(speed.amp, self.device)
        distributed.local_batch_size(
            config.optim.batch_size, config.optim.grad_accum_steps
        )  # before any work, tell of misfits
        self.metrics = MetricsLog(self.folder)
        reason = compile_unsupported_reason(self.device) if speed.compile else None
        if reason:
            distributed.print_rank0(f"--compile: running eager, {reason}")
        self.compile = speed.compile and reason is None
        reason = step_graph.unsupported_reason(self.device) if speed.cuda_graph else None
        if reason:
            distributed.print_rank0(f"--cuda-graph: running without, {reason}")
        self.cuda_graph = speed.cuda_graph and reason is None
        if self.device.type == "cpu":
            tune_malloc()

    @functools.cached_property
    def data(self) -> DataModule:
        """The run's clips; the first use makes or opens the data set and its store."""
        return open_data(
            self.config.data,
            self.config.model,
            self.device,
            with_frame_labels=self.config.supervises,
        )

    @functools.cached_property
    def task(self) -> Answers:
        """The classes in words, kept with the run so that it can be used without its data."""
        answers = Answers.read(self.folder)
        if answers is None:
            answers = Answers.of(self.data.dataset)
            if distributed.is_main():
                write_json(self.folder / ANSWERS, dataclasses.asdict(answers))
        return answers

    # --- stages ---------------------------------------------------------------------------------

    def pretrain(self) -> IVCL | Supervised:
        """Learn to rebuild patches, or to label frames; the model is kept in ``pretrain/``."""
        config = self.config
        clips, lr = config.stages.pretrain_clips, self._lr(config.optim.lr)
        schedule = Schedule(clips, lr, **self._common())

        def rebuild(model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
            return model(batch.rows, seed=clip_seeds(config.seed, step, batch.clip_ids)).loss

        def label(model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(model(batch.rows).float(), batch.labels)

        def measure(model: Supervised) -> dict[str, float]:
            loader = self._loader(self.data.curve_split, model.cfg.num_frames, pretraining=True)
            return frame_scores(model, loader, self.device, self.amp)

        how = (label, schedule, measure) if config.model.supervised else (rebuild, schedule)
        return self._train("pretrain", self.pretraining_model, config.stages.init, *how)

    def pretraining_model(self) -> IVCL | Supervised:
        """A new model of this run's sizes for its objective."""
        cfg = self.config.model
        return Supervised(cfg, len(CLASSES[cfg.objective])) if cfg.supervised else IVCL(cfg)

    def finetune(
        self, init: str, name: str = "finetune", last_only: bool = False
    ) -> IVCLClassifier:
        """Learn to answer, starting from ``init``; the model is kept in the folder ``name``.

        ``last_only`` shows the model nothing but each clip's last frame.
        """
        config = self.config
        schedule = Schedule(
            config.stages.finetune_clips,
            self._lr(config.optim.finetune_lr),
            backbone_lr_scale=1.0 if init == "random" else config.optim.backbone_lr_scale,
            **self._common(),
        )

        def loss(model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
            logits = model(*batch.inputs).float()
            if self.task.multi_label:
                return F.binary_cross_entropy_with_logits(logits, batch.labels)
            return F.cross_entropy(logits, batch.labels)

        def measure(model: IVCLClassifier) -> dict[str, float]:
            return self.evaluate(model, self.data.curve_split).curve()

        build = functools.partial(self.classifier, last_only)
        return self._train(name, build, init, loss, schedule, measure)

    def classifier(self, last_only: bool = False) -> IVCLClassifier:
        """A new classifier of this run's sizes."""
        cfg = self.config.model
        if last_only:
            cfg = dataclasses.replace(cfg, num_frames=1, num_query_frames=1)
        return IVCLClassifier(cfg, self.task.num_classes, self.task.names)

    def evaluate(self, model: IVCLClassifier, split: str | None = None) -> Evaluation:
        """Measure a classifier on a split, by default the one that results are reported on."""
        split = split or self.data.eval_split
        loader = self._loader(split, model.cfg.num_frames)
        return evaluate(model, loader, self.data, split, self.device, self.amp)

    def finished(self, name: str) -> bool:
        """Whether stage ``name`` has left its model."""
        return (self.folder / name / MODEL).is_file()

    # --- parts ----------------------------------------------------------------------------------

    def _train(
        self,
        name: str,
        build: Callable[[], Any],
        init: str,
        loss: Loss,
        schedule: Schedule,
        measure: Callable[[Any], dict[str, float]] | None = None,
    ) -> Any:
        """The trained model of stage ``name``, measured now and then on the way."""
        torch.manual_seed(self.config.seed)
        model = build().to(self.device)
        folder = self.folder / name
        if distributed.broadcast_from_rank0(
            self.finished(name)
        ):  # a shared folder shows files late
            model.load_state_dict(read_weights(folder))
            return model
        if init != "random":
            backbone.load_backbone(model, init)
        if self.config.speed.grad_checkpoint:
            model.checkpoint_blocks()
        if self.compile:
            model.compile_blocks()
        frames, pretrains = model.cfg.num_frames, name == "pretrain"
        share = 1.0 if pretrains else self.config.stages.label_fraction
        loader = self._loader(
            self.data.train_split, frames, training=True, share=share, pretraining=pretrains
        )
        Stage(
            name=name,
            model=model,
            loader=loader,
            loss=loss,
            schedule=schedule,
            folder=folder / "checkpoints",
            metrics=self.metrics,
            device=self.device,
            amp=self.amp,
            shard=self.config.speed.shard,
            cuda_graph=self.cuda_graph,
            peak_clips_per_second=self._peak_clips_per_second(model, loader.frames_per_clip),
            validate=functools.partial(measure, model) if measure else None,
            save_every=self.config.output.save_every,
        ).run()
        if not any(map(is_sharded, model.parameters())):
            self._keep(model, folder)
            return model
        whole = build()
        weights = checkpoint.whole_tensors(model.state_dict())
        if distributed.is_main():
            whole.load_state_dict(weights)
        self._keep(whole, folder)
        return self._load(whole, name)

    def _keep(self, model: Any, folder: Path) -> None:
        """Rank 0 saves its model; all go on when it is there."""
        if distributed.is_main():
            save_whole(model, folder)
        distributed.barrier()

    def _load(self, model: Any, name: str) -> Any:
        model.load_state_dict(read_weights(self.folder / name))
        return model.to(self.device).eval()

    def _common(self) -> dict[str, Any]:
        """What the schedules of all stages share."""
        names = (
            "batch_size",
            "grad_accum_steps",
            "warmup_steps",
            "weight_decay",
            "clip_norm",
            "optimizer",
        )
        return {name: getattr(self.config.optim, name) for name in names}

    def _peak_clips_per_second(
        self, model: IVCL | IVCLClassifier | Supervised, frames: float
    ) -> float | None:
        """Training clips, of ``frames`` each, at the peak arithmetic rate of all ranks' devices,
        where it is known."""
        peak = peak_flops(self.device) if self.amp else None
        if isinstance(model, Supervised):
            clip = flops.supervised_training(model.cfg, model.num_classes)
        else:
            classes = model.head.out_features if isinstance(model, IVCLClassifier) else None
            clip = flops.training(model.cfg, classes, frames=frames)
        return peak and peak * distributed.world_size() / clip

    def _lr(self, lr: float) -> float:
        return scaled_lr(lr, self.config.optim.batch_size, self.config.optim.lr_scaling)

    def _loader(
        self, split: str, num_frames: int, training: bool = False, **options: Any
    ) -> ClipLoader:
        """A rank's part of training batches; all clips to measure. See ``DataModule.loader``."""
        if training:
            options |= {"rank": distributed.rank(), "world_size": distributed.world_size()}
        return self.data.loader(
            split,
            batch_size=distributed.local_batch_size(self.config.optim.batch_size)
            if training
            else EVAL_BATCH,
            num_frames=num_frames,
            seed=self.config.seed,
            training=training,
            **options,
        )


def save_whole(model: Any, folder: Path) -> None:
    """``model.save_pretrained(folder)``, the weights appearing last and at once.

    Raises ``UserError`` where they cannot be written, as on a full disk.
    """
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        for file in sorted(partial.iterdir(), key=lambda f: f.name == MODEL):
            checkpoint.sync(file)
            os.replace(file, folder / file.name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the model cannot be written: {error}; make room, and the same command "
            "goes on from the last checkpoint"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
