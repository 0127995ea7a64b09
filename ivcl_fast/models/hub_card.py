"""What a model's folder says of it: its ``README.md``, which the Hugging Face hub shows."""

from __future__ import annotations

from typing import Any

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

model = {{ name }}.from_pretrained("FOLDER")  # this folder, or OWNER/NAME on the Hugging Face hub
video = load_clip("VIDEO", model.cfg)  # uint8 {{ video }}
{{ result }} = model{{ method }}(video)  # float {{ shape }}
```

On what it was trained, and how, is not told here; a run of `python -m ivcl_fast.train` keeps its
settings (`config.json`) and scores (`report.md`) in the folder around those of its models.

| field of its config | value |
|---|---|
{{ fields }}
"""
"""A template for ``huggingface_hub``."""


def card_fields(model: Any) -> dict[str, Any]:
    """What :data:`CARD` says of a model of ``model.py``."""
    cfg = model.cfg
    clip = [1, cfg.num_frames]
    card = {
        "video": [*clip, 3, cfg.image_size, cfg.image_size],
        "fields": "\n".join(f"| {name} | {value} |" for name, value in vars(cfg).items()),
        "result": "logits",
    }
    if hasattr(model, "decoder"):
        return card | {
            "name": "IVCL",
            "purpose": "A pretraining model, which rebuilds masked patches of a clip's frames.",
            "result": "slots",
            "method": ".encode",
            "shape": [*clip, cfg.num_slots, cfg.embed_dim],
        }
    if hasattr(model, "head"):
        classes = model.head.out_features
        return card | {
            "name": "IVCLClassifier",
            "purpose": f"A classifier of clips of {cfg.num_frames} frames, with {classes} classes.",
            "shape": [1, classes],
        }
    labelled, patches = "frame", []
    if cfg.objective == "detection":
        labelled, patches = "patch", [cfg.num_patches]
    return card | {
        "name": "Supervised",
        "purpose": f"A pretraining model, which learns labels of every {labelled} of a clip.",
        "shape": [*clip, *patches, model.num_classes],
    }
