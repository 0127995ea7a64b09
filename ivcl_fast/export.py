"""``python -m ivcl_fast.export RUN``: write a run's models for use without this package.

Exports the classifier (video to logits) and the encoder (video to slots) as ONNX files or
``torch.export`` programs with a dynamic batch size. A JSON file next to each describes its input
and output. An export whose output differs from the run's model is refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.command import parse, run_command
from ivcl_fast.data.config import DataConfig
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write, write_json
from ivcl_fast.models.ivcl import FAST, IVCL, IVCLClassifier, SlotAutoencoder

Format = Literal["onnx", "pt2"]
TOLERANCE = 1e-4
"""Maximum difference from the run's model, relative to the largest output."""
EXPORTED = {"classifier": "finetune", "encoder": "pretrain"}
"""Name of each export, and the model folder it is made from."""


@dataclass(frozen=True)
class ExportConfig:
    """Format of the exported models, and where to write them."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train, or of one of its models."""
    format: Format = "onnx"
    """onnx: for ONNX Runtime and others; pt2: for torch.export.load, which needs only PyTorch."""
    out: Path | None = None
    """Folder to write to; by default export in the run's folder."""


Exportable = IVCL | IVCLClassifier | SlotAutoencoder


class Encoder(nn.Module):
    """Encoder of a pretraining model: uint8 ``[B, T, 3, H, W]`` to ``[B, T, S, D]``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        return self.model.encode(video)


def export(config: ExportConfig) -> None:
    """Export each of the run's models; print each file and its difference from the model."""
    check_packages(config.format)
    run = FinishedRun.open(config.run, "cpu")
    chosen = {
        name: stage
        for name, stage in EXPORTED.items()
        if run.chosen in (None, stage) and run.finished(stage)
    }
    if run.config.model.supervised:
        chosen.pop("encoder", None)  # it answers with labels, not with slots
    if not chosen:
        raise UserError(
            f"{config.run}: expected a run with a finished model {' or '.join(EXPORTED.values())}, "
            "got one without"
        )
    out = config.out or run.folder / "export"
    for name, stage in chosen.items():
        model = run.load(stage)
        out.mkdir(parents=True, exist_ok=True)
        difference = write_model(model, out / f"{name}.{config.format}")
        about = description(model, run.config.data)
        if name == "classifier":
            about |= {"classes": run.classes.names, "target": run.classes.target}
        write_json(out / f"{name}.json", about)
        print(f"{out / name}.{config.format}: differs from the model by at most {difference:.1e}")


def check_packages(format: Format) -> None:
    """Raise :class:`UserError` if a package for this format is missing."""
    if format == "pt2":
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--format: expected pt2, or onnx after pip install 'ivcl_fast[onnx]', got onnx without "
            f"{error.name}"
        ) from None


def plain_model(model: Exportable) -> nn.Module:
    """Return the same model in plain PyTorch, which can be exported."""
    plain_class: Any = {fast: plain for plain, fast in FAST.items()}[type(model)]
    plain = plain_class(**model.arguments() | {"cfg": model.cfg})
    plain.load_state_dict(model.state_dict())
    return (plain if isinstance(model, IVCLClassifier) else Encoder(plain)).eval()


def write_model(model: Exportable, path: Path) -> float:
    """Write the model in the format of the suffix; return its largest difference from ``model``.

    The difference is relative to the largest output, on random batches of one and three videos.
    Raises :class:`UserError`, and writes nothing, if it is above :data:`TOLERANCE`.
    """
    own = model if isinstance(model, IVCLClassifier) else model.encode
    content = exported(model, path.suffix)
    difference = compare(load(content, path.suffix), own, model)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path}: not written: expected to differ by at most {TOLERANCE}, got {difference:.1e}"
        )
    with atomic_write(path) as file:
        file.write(content)
    return difference


def exported(model: Exportable, suffix: str) -> bytes:
    """Serialise the model in the format of the suffix.

    PyTorch does not write the file itself, because it aborts the process on a full disk.
    """
    output = "logits" if isinstance(model, IVCLClassifier) else "slots"
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    example, plain = (random_videos(model, 2),), plain_model(model)
    with warnings.catch_warnings():  # PyTorch pickles its own deprecated classes
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        if suffix == ".pt2":
            content = io.BytesIO()
            written = torch.export.export(plain, example, dynamic_shapes=shapes)
            torch.export.save(written, content)
            return content.getvalue()
        program = torch.onnx.export(
            plain, example, dynamo=True, dynamic_shapes=shapes,
            input_names=["video"], output_names=[output], verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def load(content: bytes, suffix: str) -> Callable[[Tensor], Tensor]:
    """Load an exported model as its user would."""
    if suffix == ".pt2":
        return torch.export.load(io.BytesIO(content)).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda video: torch.from_numpy(session.run(None, {"video": video.numpy()})[0])


@torch.inference_mode()
def compare(
    written: Callable[[Tensor], Tensor], own: Callable[[Tensor], Tensor], model: Any
) -> float:
    """Return the largest difference on random videos, relative to the largest output, or NaN."""
    differences = []
    for clips in (1, 3):
        video = random_videos(model, clips)
        expected = own(video).float()
        differences.append((written(video) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(differences).max())  # max propagates NaN


def random_videos(model: Any, clips: int) -> Tensor:
    """Return deterministic noise: uint8 ``[clips, T, 3, H, W]``."""
    cfg, generator = model.cfg, torch.Generator().manual_seed(clips)
    shape = clips, cfg.num_frames, 3, cfg.image_size, cfg.image_size
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def description(model: Exportable, data: DataConfig) -> dict[str, Any]:
    """Describe the model's input and output for its JSON file.

    ``frames`` are spaced evenly over the whole video (or its last one, if the model takes one), or
    over its middle, with ``frame_stride`` or over ``clip_seconds``; or they are the ``panels`` of
    an ACRE problem. ``crop``: see ``ivcl_fast.train --help-all``.
    """
    cfg = model.cfg
    frames = "panels" if clip_frames(data.source) else "even"
    if cfg.num_frames > 1 and (data.frame_stride or data.clip_seconds):
        frames = "stride" if data.frame_stride else "seconds"
    name, shape = "slots", [cfg.num_frames, cfg.num_slots, cfg.embed_dim]
    if isinstance(model, IVCLClassifier):
        name, shape = "logits", [model.head.out_features]
    return {
        "input": {
            "name": "video",
            "dtype": "uint8",
            "shape": ["batch", cfg.num_frames, 3, cfg.image_size, cfg.image_size],
            "frames": frames,
            "frame_stride": data.frame_stride,
            "clip_seconds": data.clip_seconds,
            "crop": data.crop,
        },
        "output": {"name": name, "dtype": "float32", "shape": ["batch", *shape]},
    }


def main() -> None:
    export(parse(ExportConfig, "export", __doc__))


if __name__ == "__main__":
    run_command(main)
