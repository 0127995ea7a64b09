"""Folders of finished models: ``save_pretrained``, ``from_pretrained`` and the model card."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.utils import HFValidationError

from ivcl_fast.config import IVCLConfig
from ivcl_fast.errors import UserError
from ivcl_fast.models.weights import (
    CHECKSUMS,
    CONFIG,
    MODEL,
    STAGES,
    class_of,
    misfit,
    model_folder,
    packaged_model,
    read_config,
    read_weights,
    write_checksums,
)
from ivcl_fast.text import first_line

CARD = """\
---
{{ card_data }}
---

# {{ name }} of ivcl_fast

{{ purpose }}

`ivcl_fast` implements IV-CL, of the paper [Does Visual Pretraining Help End-to-End
Reasoning?]({{ paper_url }}) (NeurIPS 2023).

```python
from ivcl_fast import {{ name }}, load_clip

# FOLDER: this folder, or OWNER/NAME on the Hugging Face hub
model = {{ name }}.from_pretrained("FOLDER")
video = load_clip("VIDEO", model.cfg{{ frames }})  # uint8 [1, T, 3, H, W]
{{ result }}
```

`config.json` has all sizes{{ classes }}.

## Training

```json
{{ training }}
```
"""
"""Model card template for ``huggingface_hub``."""

DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")
"""Arguments of ``from_pretrained`` that are passed on to ``huggingface_hub``."""


class PretrainedModel(
    PyTorchModelHubMixin,
    library_name="ivcl_fast",
    license="apache-2.0",
    tags=["video", "visual-reasoning"],
    paper_url="https://arxiv.org/abs/2307.08506",
    model_card_template=CARD,
):
    """A model that can be saved to a folder or the Hugging Face hub."""

    cfg: IVCLConfig
    kind: ClassVar[str]
    """Name of the public class; a key of :data:`~ivcl_fast.models.weights.STAGES`."""
    training_record: Mapping[str, Any] | None = None
    """Training metadata, as given to ``save_pretrained``."""

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of this model for ``config.json``."""
        return {"cfg": vars(self.cfg)}

    def save_pretrained(
        self, save_directory: str | Path, *, training: Mapping[str, Any] | None = None, **hub: Any
    ) -> str | None:
        """Write ``model.safetensors``, ``SHA256SUMS``, ``config.json`` and a model card.

        ``training``: JSON-serialisable training metadata for the card, such as data, task, clips
        seen and scores. ``from_pretrained`` restores it, and saving again keeps it. ``hub``:
        ``push_to_hub``, ``repo_id`` and other arguments of ``huggingface_hub``.

        Example::

            model.save_pretrained("folder", training={"data": "CATER", "clips seen": 30_000})
        """
        self.training_record = training or self.training_record
        config = self.arguments()
        if self.training_record:
            config["training"] = dict(self.training_record)
        folder = Path(save_directory)
        (folder / CHECKSUMS).unlink(missing_ok=True)
        result = super().save_pretrained(folder, **hub | {"config": config})
        write_checksums(folder, [MODEL, CONFIG])
        return result

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the folder's ``README.md``: the model, its use, its training and sizes."""
        return super().generate_model_card(*args, **card_fields(self) | kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: Any = "cpu",
        **download: Any,
    ) -> Self:
        """Load a model from a folder or the Hugging Face hub, in float32 and evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder written by ``save_pretrained``; a run's folder,
                for its finetuned classifier or, if this is a pretraining class, for its pretrained
                model; a packaged model such as ``ivcl_fast/tiny-localize``; or OWNER/NAME on the
                hub.
            map_location: the device of the model.
            download: revision, cache_dir, force_download, local_files_only and token, passed on to
                ``huggingface_hub.hf_hub_download``.

        Raises :class:`~ivcl_fast.errors.UserError`, a one-line ``ValueError``, if no model of this
        class is found, or if its config and weights do not fit together; ``TypeError`` for other
        keywords.

        Example::

            classifier = ivcl_fast.IVCLClassifier.from_pretrained("runs/RUN")
            logits = classifier(ivcl_fast.load_clip("video.avi", classifier.cfg))
        """
        for name in sorted(download.keys() - set(DOWNLOAD)):
            raise TypeError(
                f"from_pretrained: expected map_location, {', '.join(DOWNLOAD)}, got {name}"
            )
        folder = find_model(pretrained_model_name_or_path, STAGES[cls.kind], **download)
        return cls._from_folder(folder).to(map_location).eval()

    @classmethod
    def _from_folder(cls, folder: Path) -> Any:
        """Load the model in a folder."""
        config, weights = read_config(folder / CONFIG), read_weights(folder / MODEL)
        if (kind := class_of(weights)) not in (cls.kind, None):
            finetune = f", or {cls.kind}(cfg, num_classes).load_pretrained({str(folder)!r})"
            raise UserError(
                f"{folder}: holds a model of class {kind}, not {cls.kind}; call "
                f"{kind}.from_pretrained({str(folder)!r})"
                + (finetune if cls.kind == "IVCLClassifier" else "")
            )
        names = inspect.signature(cls.__init__).parameters
        arguments = {name: value for name, value in config.items() if name in names}
        try:
            arguments["cfg"] = IVCLConfig.from_dict(config["cfg"])
            model: Any = cls(**arguments)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{folder / CONFIG}: {error}") from None
        if reason := misfit(model, weights):
            raise UserError(f"{folder}: {reason}")
        model.load_state_dict(weights)
        model.training_record = config.get("training")
        return model


def find_model(place: str | Path, stage: str, **download: Any) -> Path:
    """Return the folder of a model: local, packaged, or downloaded from the Hugging Face hub.

    ``stage``: stage of the model if ``place`` is a run's folder. ``download``: see
    :data:`DOWNLOAD`.
    """
    if packaged := packaged_model(place):
        return packaged
    if Path(place).is_dir():
        return model_folder(place, stage)
    reason = "no folder"
    if not Path(place).exists() and Path(place).parts[:1] != ("runs",):
        try:
            files = [hf_hub_download(str(place), name, **download) for name in (CONFIG, MODEL)]
            return Path(files[0]).parent
        except (OSError, HFValidationError) as error:
            reason = first_line(error)
    raise UserError(
        f"{place}: expected a folder written by save_pretrained, a run's folder, or OWNER/NAME of "
        f"a model on the Hugging Face hub, got {reason}"
    )


# --- Model card -----------------------------------------------------------------------------------


def card_fields(model: Any) -> dict[str, str]:
    """Return the values of the template :data:`CARD` for a model."""
    record = model.training_record or {}
    asked = {
        "frame_stride": record.get("frame stride"),
        "clip_seconds": record.get("seconds per clip"),
        "crop": record.get("crop"),
    }
    is_encoder = hasattr(model, "encode")
    return {
        "name": model.kind,
        "purpose": (inspect.getdoc(type(model)) or "").partition("\n\n")[0],
        "frames": "".join(f", {k}={json.dumps(v)}" for k, v in asked.items() if v),
        "result": "slots = model.encode(video)" if is_encoder else "logits = model(video)",
        "classes": " and the names of the classes" if getattr(model, "class_names", None) else "",
        "training": json.dumps(dict(record), indent=1, default=str),
    }
