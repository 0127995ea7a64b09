"""The models of a run, to be looked at: those it left, and what it started from."""

from __future__ import annotations

import logging
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ivcl_fast.data.datamodule import open_dataset
from ivcl_fast.data.registry import Synthetic, parse_source
from ivcl_fast.errors import UserError
from ivcl_fast.models import backbone, timm_weights
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, Supervised
from ivcl_fast.models.weights import MODEL, misfit, read_weights, weights_file
from ivcl_fast.training.run import ANSWERS, Run
from ivcl_fast.training.settings import TrainConfig, load_settings

log = logging.getLogger(__name__)

Model = IVCL | IVCLClassifier | Supervised
Models = dict[str, Model]


@dataclass(frozen=True)
class DataFlags:
    """Where to find the data of a run that is looked at."""

    data: str | None = None
    """Other data of the run's kind, or its own at another place: cater:DIR, synthetic, ...; by
    default what the run was told."""
    data_dir: Path | None = None
    """Where synthetic data is kept; by default where the run kept it."""


def open_run(folder: Path, device: str, flags: DataFlags | None = None) -> Run:
    """The run in ``folder``, to look at; nothing is trained, and no data set is made.

    Raises :class:`UserError` if there is none, and for data that it cannot be looked at with.
    """
    told = load_settings(folder, device=device, compile=False, placement="disk")
    run = Run(with_data(told, flags or DataFlags()), only_look=True)
    if run.config.data.source != told.data.source and (folder / ANSWERS).is_file():
        classes = open_dataset(run.config.data, read_only=True).num_classes
        if classes != run.classes.num_classes:
            raise UserError(
                f"--data: {run.config.data.source!r} has {classes} classes; accepted: data with "
                f"the run's {run.classes.num_classes}"
            )
    return run


def with_data(config: TrainConfig, flags: DataFlags) -> TrainConfig:
    """The settings with the data that the flags name."""
    source = config.data.source
    if flags.data is not None:
        # Each format has its own reader.
        if parse_source(flags.data)[0].open is not parse_source(source)[0].open:
            raise UserError(
                f"--data: {flags.data!r} is of another kind than {source!r}, which the run "
                "was told; accepted: data of that kind"
            )
        config = config.replace(data=flags.data)
    if flags.data_dir is not None:
        if not isinstance(parse_source(config.data.source)[1], Synthetic):
            raise UserError(
                f"--data-dir: {config.data.source!r} is not synthetic; accepted: --data with its "
                "folder"
            )
        config = config.replace(data_dir=flags.data_dir)
    return config


def models_of(run: Run, weights: Path | None = None) -> Models:
    """``pretrained`` and ``finetuned``, those of them that there are, in evaluation mode.

    Of a run that only finetuned, ``pretrained`` is what it started from, as a classifier where that
    had no decoder. ``weights``, such as a checkpoint, take the place of the model of their kind.
    Raises :class:`UserError` if they are not of this run's sizes, and if there is no model at all.
    """
    models: Models = {}
    if run.finished("pretrain"):
        models["pretrained"] = run.load_pretrained()
    if run.finished("finetune"):
        models["finetuned"] = run.load_classifier("finetune")
    if "pretrained" not in models and run.config.stages.init != "random":
        try:
            models = {"pretrained": started_from(run)} | models
        except UserError as error:  # moved or deleted since
            log.warning("not shown, what the run started from: %s", error)
    if weights is not None:
        model = model_of(run, weights)
        models["finetuned" if isinstance(model, IVCLClassifier) else "pretrained"] = model
    if not models:
        raise UserError(
            f"{run.folder}: holds no finished model; accepted: a run of which a stage has ended, "
            "or a checkpoint of it beside"
        )
    return {name: model.to(run.device).eval() for name, model in models.items()}


def about(run: Run, models: Models, weights: Path | None = None) -> str:
    """Which models of which run these are, in words; ``weights`` as of :func:`models_of`."""
    config = run.config
    stages = {"pretrain": config.stages.pretrain_clips, "finetune": config.stages.finetune_clips}
    budget = [
        f"{clips} clips to {stage} on" for stage, clips in stages.items()
        if config.stages.stage in ("all", stage)
    ]  # fmt: skip
    given = f", of which one is {weights}" if weights else ""
    return (
        f"{config.data.task} on {config.data.source}, preset {config.preset}, seed {config.seed}; "
        f"{', '.join(budget)}. Models: {' and '.join(models)}{given}. "
        f"torch {torch.__version__}, {run.device}, {platform.machine()}."
    )


def model_of(run: Run, source: Path) -> Model:
    """A model of the run's sizes with these weights; a classifier if they have a head."""
    weights = read_weights(source)
    model = run.classifier() if "head.weight" in weights else run.pretraining_model()
    if reason := misfit(model, weights):
        raise UserError(f"{source}: {reason}")
    model.load_state_dict(weights)
    return model


def started_from(run: Run) -> Model:
    """The model whose weights are the run's ``init``; a classifier unless it fits as a whole."""
    model, init = run.pretraining_model(), run.config.stages.init
    if not timm_weights.is_timm(init):
        file = weights_file(init)
        weights = read_weights(file)
        if misfit(model, weights) is None:
            if file.name == MODEL:
                with suppress(UserError):  # a config beside it tells of its masks, too
                    return type(model).from_pretrained(file.parent)
            model.load_state_dict(weights)
            return model
    classifier = run.classifier()
    backbone.load_backbone(classifier, init)
    return classifier


def untrained(run: Run) -> IVCL | Supervised:
    """The model that training starts from without an ``init``, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        return run.pretraining_model().to(run.device).eval()
