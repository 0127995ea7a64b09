"""Finished runs: their settings, answers, models and data, for reading."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivcl_fast.config import OBJECTIVE_NAMES, IVCLConfig
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.datamodule import DataModule, open_data
from ivcl_fast.data.dataset import Dataset
from ivcl_fast.data.registry import open_dataset, parse_source
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.baselines import FROM_SCRATCH, LAST_FRAME
from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.evaluation.targets import TARGETS
from ivcl_fast.models import backbone
from ivcl_fast.models.hub import find_model
from ivcl_fast.models.ivcl import IVCLClassifier, PretrainingModel, pretraining_class
from ivcl_fast.models.weights import CONFIG, MODEL, read_config, weights_file
from ivcl_fast.training.classes import Classes, pretraining_model
from ivcl_fast.training.run import Run
from ivcl_fast.training.settings import TrainConfig, load_settings

Model = PretrainingModel | IVCLClassifier
Models = dict[str, Model]
"""Models by training state: ``untrained``, ``pretrained``, ``finetuned``."""
STATES = {"pretrain": "pretrained", "finetune": "finetuned"}
"""Training states of a run's models by folder."""


class FinishedRun(Run):
    """A read-only run: nothing is trained and no data set is generated.

    ``config``: its settings; :meth:`open` reads them from its folder. ``data``: its clips, if
    already open. ``chosen``: the only model to use, such as ``finetune``. ``model``: that model, if
    it is not in a run's folder.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataModule | None = None,
        chosen: str | None = None,
        model: Model | None = None,
    ) -> None:
        super().__init__(config.replace(compile=False, cuda_graph=False, viewer="none"))
        self.chosen, self.model = chosen, model
        self.localizes = config.data.task.startswith("localize")
        """Whether the classes are cells of CATER's floor grid."""
        if data is not None:
            self.data, self.dataset = data, data.dataset

    @classmethod
    def open(cls, place: Path, device: str, data: str | None = None) -> FinishedRun:
        """Open a run by its folder or that of one of its models, or a model without its run.

        A model without its run is a folder, a packaged model (``ivcl_fast/tiny-localize``) or
        OWNER/NAME on the Hugging Face hub. ``device``: see ``--device``. ``data``: a source that
        replaces the run's. Raises :class:`UserError` if neither a run nor a model is found, or for
        data of another kind or with other classes.
        """
        if found := model_without_run(place):
            saved = read_config(found / CONFIG)
            kind = pretraining_class(IVCLConfig.from_dict(saved["cfg"]))
            model = (IVCLClassifier if "class_names" in saved else kind).from_pretrained(found)
            return cls.of_model(model, place.name, device, data)
        folder, chosen = place, None
        if (place / MODEL).is_file():  # of a model in its run
            folder, chosen = place.resolve().parent, place.resolve().name
        kept = load_settings(folder, device=device)
        run = cls(with_data(kept, data), chosen=chosen)
        if run.config.data.source != kept.data.source and (classes := Classes.read(folder)):
            classes.check_same(run.config.data.source, run.dataset)
        return run

    @classmethod
    def of_model(cls, model: Model, name: str, device: str, data: str | None = None) -> FinishedRun:
        """Return a run for a model without its run, with the settings in its training metadata."""
        record = model.training_record or {}
        kind = record.get("data", "synthetic")
        known = DataConfig(
            source=kind if kind.startswith("synthetic") else f"{kind}:.",
            task=record.get("task", "auto"),
            frame_stride=record.get("frame stride", 0),
            clip_seconds=record.get("seconds per clip", 0.0),
            crop=record.get("crop", "none"),
        )
        settings = TrainConfig(preset=record.get("preset", "tiny"), model=model.cfg, data=known)
        settings = with_data(settings.replace(device=device, out=Path(), name=name), data)
        if not isinstance(model, IVCLClassifier):
            return cls(settings, chosen="pretrain", model=model)
        run = cls(settings, chosen="finetune", model=model)
        names = model.class_names or [f"class {n}" for n in range(model.head.out_features)]
        run.classes = Classes(record.get("target", "class"), names)
        return run

    @cached_property
    def classes(self) -> Classes:
        """The classes of the run or, before finetuning, of its data."""
        return Classes.read(self.folder) or Classes.of(self.dataset)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set; raises :class:`UserError` if it is missing."""
        return open_dataset(self.config.data, read_only=True)

    @cached_property
    def data(self) -> DataModule:
        """The clips; frames are decoded first if there is no store."""
        data = open_data(self.config.data, self.config.model, self.device, read_only=True)
        self.dataset = data.dataset  # warns once about missing packages
        return data

    def finished(self, name: str) -> bool:
        """Return whether the run's model in folder ``name`` is finished."""
        return name == self.chosen if self.model else super().finished(name)

    def load(self, name: str) -> Any:
        """Return the finished model in folder ``name``, in evaluation mode on the run's device."""
        model = self.model
        if model is None:
            kind = pretraining_class(self.config.model) if name == "pretrain" else IVCLClassifier
            model = kind.from_pretrained(self.folder / name)
        return model.to(self.device).eval()

    def record(self, name: str) -> dict[str, Any]:
        """Return the training metadata of the model in folder ``name``; empty if it has none."""
        if self.model is not None:
            return dict(self.model.training_record or {})
        return read_config(self.folder / name / CONFIG).get("training") or {}

    def untrained(self) -> PretrainingModel:
        """Return a model with random weights from the run's seed, in evaluation mode.

        Its blocks are random even if training starts from identity blocks, in which slots do not
        see their frames.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return pretraining_model(self.config.model).to(self.device).eval()

    def models(self) -> Models:
        """Return the models ``pretrained`` and ``finetuned`` that exist, in evaluation mode.

        Raises :class:`UserError` if there is none.
        """
        if self.chosen not in (None, *STATES):
            raise UserError(
                f"{self.folder / str(self.chosen)}: expected {self.folder}, or its folder "
                + " or ".join(STATES)
            )
        stages = [stage for stage in STATES if self.chosen in (None, stage)]
        models: Models = {STATES[s]: self.load(s) for s in stages if self.finished(s)}
        if not models:
            raise UserError(f"{self.folder}: expected a run with a finished model, got none")
        return models

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of the classes, or the predicted numbers: ``[..., C]``."""
        return TARGETS[self.classes.target].answers(logits)

    @property
    def predicts_classes(self) -> bool:
        """Whether the answers are probabilities of classes instead of numbers."""
        return self.classes.target in ("class", "classes")

    def title(self, name: str) -> str:
        """Return the name in tables of the classifier in folder ``name``, as in the report."""
        title = LAST_FRAME if name == "last-frame" else origin(self.config)
        return title + label_note(self.config)

    @torch.inference_mode()
    def predict(self, model: IVCLClassifier, frames: Tensor) -> Tensor:
        """Return the probabilities of the classes, or the numbers, of one clip: float32 ``[C]``.

        ``frames``: uint8 ``[T, 3, H, W]``; a model that takes fewer frames uses the last ones.
        """
        video = frames[-model.cfg.num_frames :].unsqueeze(0).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            return self.probabilities(model(video).float()[0])

    def answer(self, model: IVCLClassifier, frames: Tensor, count: int) -> dict[str, float]:
        """Return the ``count`` most likely classes with their probabilities, or all numbers.

        ``frames``: see :meth:`predict`.
        """
        scores = self.predict(model, frames)
        if not self.predicts_classes:
            return dict(zip(self.classes.names, scores.tolist(), strict=True))
        best = scores.topk(min(count, len(scores)))
        return {
            self.classes.names[label]: score
            for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        }

    def evaluate(
        self, model: IVCLClassifier, split: str | None = None, **options: Any
    ) -> Evaluation:
        """Like :meth:`Run.evaluate`; raise :class:`UserError` if the data's classes have
        changed."""
        self.classes.check_same(self.config.data.source, self.dataset)
        return super().evaluate(model, split, **options)

    def describe(self, data: str | None = None) -> str:
        """Describe the run in a sentence; ``data``: its clips, by default the run's data."""
        config, length = self.config, self.describe_length()
        data = data or config.data.source
        if not length:
            return f"{self.folder.name} on {data}."
        about = f"Task {config.data.task} on {data}, preset {config.preset}, seed {config.seed}"
        return f"{about}; {length}."

    def describe_length(self) -> str:
        """Describe how many clips the finished stages have seen."""
        lengths = []
        for name, stage in (("pretrain", "pretraining"), ("finetune", "finetuning")):
            record = self.record(name) if self.finished(name) else {}
            if "clips seen" not in record:  # a model that was not saved by a run
                continue
            whole = f"{record['clips seen']:,}"
            seen = f"{whole} clips"
            for which in ("last", "single"):
                if first := record.get(f"{which} frames seen before"):
                    seen = f"{first:,} {which} frames and {whole} whole clips"
            text = f"{seen} of {stage}"
            if share := record.get("label fraction"):
                text += f" with {100 * share:g}% of the labels"
            lengths.append(text + " (frozen encoder)" * (record.get("encoder") == "frozen"))
        return ", ".join(lengths)


def origin(config: TrainConfig) -> str:
    """Describe the weights from which finetuning started."""
    if config.stages.stage == "finetune":
        if config.stages.init == "random":
            return FROM_SCRATCH
        if backbone.has_public_name(config.stages.init):
            return f"pretrained: {config.stages.init}"
        try:
            model = weights_file(config.stages.init).parent
            config = load_settings(model.parent)  # models are in the folder of their run
        except UserError:
            return "pretrained"
        if model.name != "pretrain":
            return f"from the model {model.name} of {model.parent.resolve().name}"
    return OBJECTIVE_NAMES[config.model.objective]


def label_note(config: TrainConfig) -> str:
    """Return a title suffix for a model trained with the labels of all frames."""
    return ", with labels of all frames" if config.stages.frame_labels else ""


def model_without_run(place: Path) -> Path | None:
    """Return the folder of a model outside a run, or None for a run or a model in one."""
    if (place / MODEL).is_file():
        return None if (place.resolve().parent / CONFIG).is_file() else place
    is_name = not place.exists() and not place.is_absolute() and len(place.parts) == 2
    return find_model(str(place), "finetune") if is_name and place.parts[0] != "runs" else None


def with_data(config: TrainConfig, source: str | None) -> TrainConfig:
    """Return the settings with other data of the same kind, if given."""
    if source is None:
        return config
    own = config.data.source
    # Each format has its own reader.
    if parse_source(source)[0].open is not parse_source(own)[0].open:
        raise UserError(f"--data: expected data of the run's kind, {own!r}, got {source!r}")
    return config.replace(source=source)
