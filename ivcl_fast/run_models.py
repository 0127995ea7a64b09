"""The models that a run left, and the one it started from."""

from __future__ import annotations

from pathlib import Path

import torch

from . import checkpoint
from .errors import UserError
from .model import IVCL, IVCLClassifier
from .run import Run
from .settings import load_settings


def open_run(folder: Path, device: str) -> Run:
    """The run in ``folder``, to look at. Raises :class:`UserError` if it has no finished model."""
    run = Run(load_settings(folder, device=device, compile=False))
    if not (run.finished("pretrain") or run.finished("finetune")):
        raise UserError(f"{folder}: holds no finished model; a stage of ivcl_fast.train must end")
    return run


def finished_models(run: Run) -> dict[str, IVCL | IVCLClassifier]:
    """``pretrained`` and ``finetuned``, those of them that there are."""
    models: dict[str, IVCL | IVCLClassifier] = {}
    if run.finished("pretrain"):
        models["pretrained"] = run.load_pretrained()
    if run.finished("finetune"):
        models["finetuned"] = run.load_classifier("finetune")
    return models


def untrained(run: Run) -> IVCL:
    """The model that the run started from, had it no other ``init``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        return IVCL(run.config.model).to(run.device).eval()


def finetuned_backbone(run: Run) -> IVCL:
    """Encoder and temporal transformer of the finetuned model, where ``encode`` finds them."""
    model = untrained(run)
    checkpoint.load_backbone(model, run.folder / "finetune")
    return model
