"""A training run: its data, its folder and its stages."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ivcl_fast.data.datamodule import DataModule, open_data
from ivcl_fast.data.loader import Batch, ClipLoader
from ivcl_fast.data.sampling import ANY_FRAME
from ivcl_fast.data.slots import Slots
from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.parallel import is_sharded
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.evaluate import BATCH, Evaluation, encode, evaluate, frame_scores
from ivcl_fast.evaluation.targets import TARGETS
from ivcl_fast.models import backbone, flops
from ivcl_fast.models.ivcl import IVCLClassifier, PretrainingModel, Supervised
from ivcl_fast.models.weights import read_weights
from ivcl_fast.training import checkpoint
from ivcl_fast.training.classes import Classes, pretraining_model
from ivcl_fast.training.hardware import choose_execution, peak_flops, tune_malloc
from ivcl_fast.training.loop import Intervals, Loss, Stage, clip_seeds
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.model_card import describe_training
from ivcl_fast.training.optim import Schedule, scaled_lr
from ivcl_fast.training.run_folder import CHECKPOINTS, has_progress, is_finished
from ivcl_fast.training.settings import TrainConfig

LAST_FRAME_PASSES = 4
"""Default maximum number of epochs over last frames; models overfit with 11."""


class Run:
    """Trains and evaluates the models of one run; each stage saves its model in a folder.

    A finished stage loads its model; an unfinished stage continues from its newest checkpoint.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = config.folder
        self.execution = choose_execution(config.speed)
        self.device, self.amp = self.execution.device, self.execution.amp
        # Raises early if the batch does not split evenly.
        distributed.local_batch_size(config.optim.batch_size, config.optim.grad_accum_steps)
        self.metrics = MetricsLog(self.folder, config.output.viewer)
        self._training_loaders: dict[str, ClipLoader] = {}
        if self.device.type == "cpu":
            tune_malloc()

    @functools.cached_property
    def data(self) -> DataModule:
        """The run's clips; the first access creates or opens the data set and its frame store."""
        return open_data(
            self.config.data,
            self.config.model,
            self.device,
            frame_labels=self.config.frame_label_kinds,
            needs_classes=self.config.stages.stage == "finetune",
            targets=self.config.stages.targets,
        )

    @functools.cached_property
    def finetunes(self) -> bool:
        """Whether the run finetunes: the settings include it and the data has classes."""
        return self.config.stages.stage != "pretrain" and self.data.num_classes > 0

    @functools.cached_property
    def classes(self) -> Classes:
        """The classes of the task, saved with the run so that it can be used without its data.

        Raises :class:`UserError` if the data's classes have changed since the first checkpoint.
        """
        classes = Classes.read(self.folder) if has_progress(self.folder) else None
        if classes is not None:
            classes.check_same(self.config.data.source, self.data.dataset)
        else:
            classes = Classes.of(self.data.dataset)
            if distributed.is_main():
                classes.write(self.folder)
        return classes

    def check_batches(self) -> None:
        """Raise :class:`UserError` if the training clips of a stage do not fill one batch."""
        for stage in self.config.stages.clips:
            if stage == "pretrain" or self.finetunes:
                self._training_loader(stage, self.config.model.num_frames)

    # --- Stages ---------------------------------------------------------------------------------

    def pretrain(self) -> PretrainingModel:
        """Pretrain on frames or their labels; save the model in ``pretrain/``."""
        config = self.config
        schedule = self._schedule(config.stages.pretrain_clips, config.optim.lr)

        def reconstruct(model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
            return model(batch.rows, seed=clip_seeds(config.seed, step, batch.clip_ids)).loss

        def draw(model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
            targets = batch.labels if config.model.decodes_features else None
            return model(batch.rows, targets).loss

        def label(model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(model(batch.rows).float(), batch.labels)

        def measure(model: Supervised) -> dict[str, float]:
            split, share = self.data.curve_split, self.data.curve_share
            loader = self._in_order(split, share, **self._pretraining_batches())
            return frame_scores(model, loader, self.device, self.amp)

        build = functools.partial(pretraining_model, config.model)
        if config.model.supervised:
            return self._train("pretrain", build, config.stages.init, label, schedule, measure)
        loss = draw if config.model.objective == "slot_attention" else reconstruct
        return self._train("pretrain", build, config.stages.init, loss, schedule)

    def finetune(self, init: str) -> IVCLClassifier:
        """Finetune on the task from the weights ``init``; save the model in ``finetune/``.

        Depending on the settings, training starts with :meth:`last_frame` and continues with its
        model, and the encoder is frozen unless it is random.
        """
        stages, start, lr_scale = self.config.stages, None, 1.0
        freeze = stages.freeze_encoder and init != "random"
        if self.last_frame_clips(init):
            start = self.last_frame(init).state_dict()
            lr_scale = 1.0 if freeze else self.config.optim.whole_clip_lr_scale
        schedule = self._finetuning(stages.finetune_clips, init, lr_scale)
        return self._train(
            "finetune", self.classifier, init, self._answer_loss, schedule, self._measure_curve,
            start, freeze,
        )  # fmt: skip

    def last_frame(self, init: str) -> IVCLClassifier:
        """Finetune on the last frame of each clip only, from the weights ``init``.

        The model has no memory: it is a baseline, and a cheap first part of :meth:`finetune`.
        """
        clips = self.last_frame_clips(init) or self.config.stages.finetune_clips
        schedule = self._finetuning(clips, init)
        build = functools.partial(self.classifier, last_only=True)
        loss, measure = self._answer_loss, self._measure_curve
        return self._train("last-frame", build, init, loss, schedule, measure)

    def last_frame_clips(self, init: str) -> int:
        """Return the number of clips in the last-frame part of finetuning from ``init``."""
        stages = self.config.stages
        if stages.last_frame_clips is not None:
            return stages.last_frame_clips
        if not self.data.asks_for_snitch or init == "random":
            return 0
        clips = 4 * stages.finetune_clips
        if stages.frame_labels:  # any frame of a video, so epochs differ
            return clips
        return min(clips, LAST_FRAME_PASSES * len(self.data.dataset.clips(self.data.train_split)))

    def _finetuning(self, clips: int, init: str, lr_scale: float = 1.0) -> Schedule:
        optim = self.config.optim
        scale = 1.0 if init == "random" else optim.backbone_lr_scale
        return self._schedule(clips, lr_scale * optim.finetune_lr, backbone_lr_scale=scale)

    def _answer_loss(self, model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
        every_frame = self.config.stages.frame_labels
        outputs = model(*batch.inputs, every_frame=every_frame).float()
        return TARGETS[self.classes.target].loss(outputs, batch.labels)

    def _measure_curve(self, model: IVCLClassifier, slots: Slots | None = None) -> dict[str, float]:
        # One clip per video is enough for the training curve.
        evaluation = self.evaluate(
            model, self.data.curve_split, clips_per_video=1, share=self.data.curve_share,
            slots=slots,
        )  # fmt: skip
        return evaluation.curve()

    def classifier(self, last_only: bool = False) -> IVCLClassifier:
        """Build an untrained classifier of this run's sizes; ``last_only``: for single frames."""
        cfg = self.config.model
        if last_only:
            cfg = dataclasses.replace(cfg, num_frames=1, num_query_frames=1)
        return IVCLClassifier(cfg, len(self.classes.names), self.classes.names)

    def evaluate(
        self, model: IVCLClassifier, split: str | None = None, **options: Any
    ) -> Evaluation:
        """Evaluate a classifier on a split, by default the one used for reports.

        ``options``: see :func:`~ivcl_fast.evaluation.evaluate.evaluate`.
        """
        data = self.config.data
        options = {"clips_per_video": data.eval_clips} | options
        split, seed = split or self.data.eval_split, self.config.seed
        return evaluate(model, self.data, split, self.device, self.amp, seed=seed, **options)

    def finished(self, name: str) -> bool:
        """Return whether the stage ``name`` is finished, that is, has saved its model."""
        return is_finished(self.folder / name)

    # --- Parts of a stage -----------------------------------------------------------------------

    def _train(
        self,
        name: str,
        build: Callable[[], Any],
        init: str,
        loss: Loss,
        schedule: Schedule,
        measure: Callable[..., dict[str, float]] | None = None,
        last_frame: Mapping[str, Tensor] | None = None,
        freeze: bool = False,
    ) -> Any:
        """Train the model from ``build`` as stage ``name``, or load it if the stage is finished.

        ``last_frame``: weights of a last-frame model, which replace those of ``init``. ``freeze``:
        freeze the encoder, and train and evaluate on its slots.
        """
        torch.manual_seed(self.config.seed)
        model = build().to(self.device)
        folder = self.folder / name
        # Rank 0 decides: on a shared file system, files may appear later on other machines.
        if distributed.broadcast_from_rank0(self.finished(name)):
            if distributed.is_main():  # left if the process was killed before deleting them
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            model.load_state_dict(read_weights(folder))
            return model
        if self.config.optim.zero_init:
            backbone.zero_branches(model)
        if init != "random":
            backbone.load_backbone(model, init)
        if last_frame is not None:
            backbone.load_last_frame(model, last_frame)
        if self.config.speed.grad_checkpoint:
            model.checkpoint_blocks()
        if self.execution.compile:
            distributed.print_rank0(f"{name}: compiling the blocks; the first step takes longer")
            model.compile_blocks()
        if freeze:
            loader, measure = self._on_slots(name, model)
        else:
            loader = self._training_loader(name, model.cfg.num_frames)
        output = self.config.output
        Stage(
            name, model, loader, loss, schedule, folder / CHECKPOINTS, self.metrics, self.execution,
            Intervals(save=output.save_every, save_minutes=output.save_minutes),
            functools.partial(measure, model) if measure else None,
            self._peak_clips_per_second(model, loader.frames_per_clip),
        ).run()  # fmt: skip
        self._training_loaders.pop(name, None)
        loader.close()
        if sharded := any(map(is_sharded, model.parameters())):
            weights = checkpoint.gather_to_rank0(model.state_dict())
            model = build()
        if distributed.is_main():
            if sharded:
                model.load_state_dict(weights)
            frames = self.last_frame_clips(init) if name == "finetune" else 0
            scores = {self.data.measured_in_training: self.metrics.last_scores(name)}
            training = describe_training(self.config, name, schedule, init, frames, scores)
            if isinstance(model, IVCLClassifier) and self.classes.target != "class":
                training["target"] = self.classes.target
            try:
                model.save_pretrained(folder, training=training)
            except SafetensorError as error:  # such as on a full disk
                raise UserError(f"{folder}: the model cannot be written: {error}") from None
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        distributed.barrier()
        if sharded:
            model.load_state_dict(read_weights(folder))
        return model.to(self.device)

    def _on_slots(
        self, name: str, model: IVCLClassifier
    ) -> tuple[ClipLoader, Callable[[IVCLClassifier], dict[str, float]]]:
        """Freeze the encoder; return a loader of its slots and the validation function."""
        model.encoder.requires_grad_(False)
        stages, frames = self.config.stages, model.cfg.num_frames

        def encoded(split: str, share: float) -> Slots:
            return encode(model, self._in_order(split, share), self.device, self.amp)

        trained = encoded(self.data.train_split, stages.label_fraction)
        measured = encoded(self.data.curve_split, self.data.curve_share)
        loader = self._training_loader(name, frames, slots=trained, slot_noise=stages.slot_noise)
        return loader, functools.partial(self._measure_curve, slots=measured)

    def _schedule(self, clips: int, lr: float, **options: Any) -> Schedule:
        """Return the schedule of a stage; ``options``: other fields of :class:`Schedule`."""
        optim = self.config.optim
        return Schedule(
            clips, scaled_lr(lr, optim.batch_size, optim.lr_scaling), optim.batch_size,
            optim.grad_accum_steps, optim.warmup_steps, optim.weight_decay, optim.clip_norm,
            optimizer=optim.optimizer, **options,
        )  # fmt: skip

    def _peak_clips_per_second(
        self, model: PretrainingModel | IVCLClassifier, frames: float
    ) -> float | None:
        """Return the clips per second, of ``frames`` frames each, at the peak FLOP/s of all
        devices, or None if that is unknown."""
        peak = peak_flops(self.device) if self.amp else None
        if peak is None:
            return None
        if isinstance(model, Supervised):
            each = flops.supervised_training(model.cfg, model.num_classes)
        else:
            classes = model.head.out_features if isinstance(model, IVCLClassifier) else None
            each = flops.training(model.cfg, classes, frames)
        return peak * distributed.world_size() / each

    def _training_loader(self, stage: str, num_frames: int, **slots: Any) -> ClipLoader:
        """Return this rank's part of the training batches of a stage.

        ``slots``: options of :meth:`DataModule.loader` for slots; such loaders are not cached.
        """
        config = self.config
        if not slots and stage in self._training_loaders:
            return self._training_loaders[stage]
        if stage == "pretrain":
            options = self._pretraining_batches()
        else:
            options = {"share": config.stages.label_fraction, **slots}
            if config.stages.frame_labels:
                options["frame_labels"] = "cells"
                if num_frames == 1 and not slots:  # slots have the label of the last frame
                    options["frame_stride"] = ANY_FRAME  # every frame has a label
        loader = self.data.loader(
            self.data.train_split,
            batch_size=distributed.local_batch_size(config.optim.batch_size),
            num_frames=num_frames,
            seed=config.seed,
            training=True,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            **options,
        )
        if not slots:
            self._training_loaders[stage] = loader
        return loader

    def _in_order(self, split: str, share: float, **options: Any) -> ClipLoader:
        """Return all clips of a fraction of a split's videos, once and in order."""
        options |= dict(num_frames=self.config.model.num_frames, seed=self.config.seed)
        return self.data.loader(split, batch_size=BATCH, training=False, share=share, **options)

    def _pretraining_batches(self) -> dict[str, Any]:
        """Return the options of ``DataModule.loader`` for pretraining."""
        model = self.config.model
        labels: str | None = model.objective if model.supervised else None
        if model.decodes_features:
            labels = "features"
        return {"frame_labels": labels, "share_frames": False}
