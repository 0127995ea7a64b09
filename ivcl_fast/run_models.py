"""The models of a run, to be looked at: those it left, and what it started from."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from . import backbone, checkpoint, timm_weights
from .errors import UserError
from .model import IVCL, IVCLClassifier, Supervised
from .run import Run
from .settings import load_settings

log = logging.getLogger(__name__)

Model = IVCL | IVCLClassifier | Supervised
Models = dict[str, Model]


def open_run(folder: Path, device: str) -> Run:
    """The run in ``folder``, to look at. Raises :class:`UserError` if there is none."""
    return Run(load_settings(folder, device=device, compile=False, placement="disk"))


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
    if "pretrained" not in models and run.config.init != "random":
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
    stages = {"pretrain": config.pretrain_clips, "finetune": config.finetune_clips}
    budget = [
        f"{clips} clips to {stage} on" for stage, clips in stages.items()
        if config.stage in ("all", stage)
    ]  # fmt: skip
    given = f", of which one is {weights}" if weights else ""
    return (
        f"{config.task} on {config.data}, preset {config.preset}, seed {config.seed}; "
        f"{', '.join(budget)}. Models: {' and '.join(models)}{given}. "
        f"torch {torch.__version__}, {run.device}, {platform.machine()}."
    )


def model_of(run: Run, source: Path) -> Model:
    """A model of the run's sizes with these weights; a classifier if they have a head."""
    weights = checkpoint.read_weights(source)
    model = run.classifier() if "head.weight" in weights else run.pretraining_model()
    if reason := misfit(weights, model):
        raise UserError(f"{source}: {reason}")
    model.load_state_dict(weights)
    return model


def started_from(run: Run) -> Model:
    """The model whose weights are the run's ``init``; a classifier unless it fits as a whole."""
    model, init = run.pretraining_model(), run.config.init
    if not timm_weights.is_timm(init):
        weights = checkpoint.read_weights(init)
        if misfit(weights, model) is None:
            model.load_state_dict(weights)
            return model
    classifier = run.classifier()
    backbone.load_backbone(classifier, init)
    return classifier


def misfit(weights: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Why ``weights`` are not those of such a model, or None if they are."""
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        ours, theirs = (list(d[key].shape) if key in d else "none" for d in (own, weights))
        if ours != theirs:
            return f"{key} is {theirs} there, but {ours} in the run's model"
    return None


def untrained(run: Run) -> IVCL | Supervised:
    """The model that training starts from without an ``init``, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        return run.pretraining_model().to(run.device).eval()
