"""Settings of a training run, in groups, and their serialisation in ``config.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, cast

from tyro.conf import OmitArgPrefixes, arg

from ivcl_fast.config import FrameLabelKind, IVCLConfig
from ivcl_fast.data.config import DataConfig
from ivcl_fast.errors import UserError, require_above, require_at_least
from ivcl_fast.files import read_json, write_text
from ivcl_fast.models import timm_weights
from ivcl_fast.models.weights import CONFIG
from ivcl_fast.training.metrics_log import Viewer

MOST_CLIPS = 1_000_000
"""Maximum number of clips per step."""


@dataclass(frozen=True)
class StagesConfig:
    """Stages, initial weights and numbers of clips."""

    stage: Literal["all", "pretrain", "finetune"] = "all"
    """Stages to run; finetune alone starts from --init."""
    init: str = "random"
    """Weights to start from: random, the folder of a run or of a model, a .safetensors file, a
    packaged model (ivcl_fast/tiny-pretrained), or a ViT for the image encoder (timm:NAME,
    timm:PATH)."""
    targets: str = "pixels"
    """What slot attention decodes: pixels, or the frozen features of a ViT (timm:NAME,
    timm:PATH), such as timm:vit_small_patch14_dinov2."""
    pretrain_clips: int = 20_000
    """Clips seen in pretraining, including repeats."""
    finetune_clips: int = 5_000
    """Clips seen in finetuning, including repeats."""
    last_frame_clips: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: depends on the task)")
    ] = None
    """Clips of the first part of finetuning, which sees only the last frame (with --frame-labels,
    any frame)."""
    label_fraction: float = 1.0
    """Fraction of the training videos (ACRE: problems) with labels in finetuning."""
    freeze_encoder: bool = False
    """Finetune only the temporal transformer and the head, on slots that are computed once per
    clip; about 20 times faster per clip."""
    slot_noise: float = 0.5
    """With --freeze-encoder: noise on the slots, relative to their standard deviation."""
    frame_labels: bool = False
    """Finetune on the snitch's cell in every frame; results are marked \"with labels of all
    frames\"."""
    compare_memoryless: bool = True
    """Also report baselines without memory or reasoning."""

    def check(self) -> None:
        require_at_least(self, 1, "pretrain_clips", "finetune_clips")
        require_at_least(self, 0, "slot_noise", "last_frame_clips")
        require_above(self, 0, "label_fraction", most=1)

    @property
    def clips(self) -> dict[str, int]:
        """Clips seen in each stage to run."""
        lengths = {"pretrain": self.pretrain_clips, "finetune": self.finetune_clips}
        return lengths if self.stage == "all" else {self.stage: lengths[self.stage]}


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimiser."""

    batch_size: int = 16
    """Clips per optimiser step, over all ranks."""
    grad_accum_steps: int = 1
    """Number of micro-batches per rank, to save memory."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the hidden matrices, AdamW for the rest; adamw: AdamW for all."""
    lr: float = 3e-3
    """Peak learning rate of pretraining."""
    finetune_lr: float = 3e-3
    """Peak learning rate of the head in finetuning."""
    backbone_lr_scale: float = 0.5
    """Learning rate of pretrained weights in finetuning, relative to --finetune-lr."""
    whole_clip_lr_scale: float = 0.3
    """Learning rate on whole clips after the last-frame part, relative to that part's."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """Multiply the learning rates, which are for 16 clips, by sqrt(batch/16) or batch/16."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most a tenth of a stage, before cosine decay."""
    weight_decay: float = 0.05
    """Weight decay of matrices."""
    clip_norm: float = 1.0
    """Maximum gradient norm."""
    zero_init: bool = True
    """Initialise blocks without loaded weights as the identity."""

    def check(self) -> None:
        require_at_least(self, 1, "grad_accum_steps")
        require_at_least(self, 0, "backbone_lr_scale", "whole_clip_lr_scale")
        require_at_least(self, 0, "weight_decay", "warmup_steps")
        require_above(self, 0, "lr", "finetune_lr")
        require_above(self, 0, "clip_norm", most=math.inf)  # inf: no clipping
        require_at_least(self, 1, "batch_size", most=MOST_CLIPS)
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"--grad-accum-steps: expected a divisor of --batch-size {self.batch_size}, got "
                f"{self.grad_accum_steps}"
            )


@dataclass(frozen=True)
class SpeedConfig:
    """Device, precision and memory."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """bfloat16 autocast; auto: where the hardware is fast at it."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile."""
    cuda_graph: bool = True
    """Run the training step as a CUDA graph, on a single GPU."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass: saves memory, takes a third longer."""
    shard: bool = False
    """Shard parameters and optimiser state over the ranks (FSDP2) instead of replicating (DDP)."""


@dataclass(frozen=True)
class OutputConfig:
    """Output settings."""

    out: Path = Path("runs")
    """Folder that holds the runs."""
    name: Annotated[
        str | None,
        arg(metavar="STR", help_behavior_hint="(default: from data, task and preset)"),
    ] = None
    """Name of the run's folder in --out."""
    resume: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """Continue the unfinished run in this folder, with its settings."""
    overwrite: bool = False
    """First delete an earlier run of the same name."""
    pictures: bool = True
    """Write report.html, in which clips play."""
    viewer: Viewer = "tensorboard"
    """Viewer of the training curves; metrics.jsonl is always written."""
    save_every: int = 5000
    """Steps between checkpoints."""
    save_minutes: float = 10.0
    """Maximum minutes between checkpoints."""

    def check(self) -> None:
        require_at_least(self, 1, "save_every")
        require_above(self, 0, "save_minutes", most=math.inf)  # inf: only --save-every counts
        name = PurePath(self.name or "run")
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise UserError(f"--name: expected the name of a folder in --out, got {self.name!r}")


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    preset: str = "tiny"
    """Model sizes: tiny, small, base64 or base224."""
    quick: bool = False
    """Run every part once on a little data; the model learns nothing."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Start from the settings in a file, such as another run's config.json; flags take
    precedence."""
    seed: int = 0
    """Seed of the weights, the order of clips, the sampled frames and the masks."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()
    stages: OmitArgPrefixes[StagesConfig] = StagesConfig()
    optim: OmitArgPrefixes[Annotated[OptimConfig, arg(name="optimiser")]] = OptimConfig()
    model: OmitArgPrefixes[IVCLConfig] = IVCLConfig()
    speed: OmitArgPrefixes[SpeedConfig] = SpeedConfig()
    output: OmitArgPrefixes[OutputConfig] = OutputConfig()

    def check(self) -> None:
        """Raise :class:`UserError`, naming the flag, for an invalid value."""
        require_at_least(self, 0, "seed", most=2**63 - 1)
        for group in (self.data, self.stages, self.optim, self.output):
            group.check()
        targets = self.stages.targets
        if targets != "pixels":
            if not timm_weights.is_timm(targets):
                raise UserError(f"--targets: expected pixels or timm:NAME, got {targets!r}")
            decodes = self.model.objective == "slot_attention" and self.data.loader == "store"
            if not decodes or self.data.mirror:
                raise UserError(
                    "--targets: expected --objective slot_attention, --loader store and no "
                    f"--mirror with {targets}"
                )
        freezes = self.stages.freeze_encoder
        if freezes and self.model.objective == "joint":
            raise UserError(
                "--freeze-encoder: expected an encoder of single frames, got --objective joint"
            )
        random = self.stages.init == "random" or (
            self.model.objective == "slot_attention" and timm_weights.is_timm(self.stages.init)
        )  # a ViT has no competing slots
        if freezes and self.stages.stage == "finetune" and random:
            raise UserError(
                "--freeze-encoder: expected --init with a pretrained model, or --stage all, got "
                "random weights"
            )

    @property
    def frame_label_kinds(self) -> list[FrameLabelKind]:
        """Kinds of frame labels that the run is trained on."""
        kinds: list[FrameLabelKind] = []
        if self.stages.stage != "finetune" and self.model.supervised:
            kinds.append(cast(FrameLabelKind, self.model.objective))
        if self.stages.stage != "pretrain" and self.stages.frame_labels:
            kinds.append("cells")
        return kinds

    @property
    def folder(self) -> Path:
        """The run's folder."""
        kind, _, place = self.data.source.partition(":")
        source = f"{kind}-{PurePath(place).name}".strip("-.")
        default = f"{source}-{self.data.task}-{self.preset}" + ("-quick" if self.quick else "")
        return self.output.out / (self.output.name or default)

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a checked copy with some settings changed by name, such as ``lr`` or ``model``."""
        groups = {
            name: dataclasses.replace(
                group, **{k: changes.pop(k) for k in vars(group).keys() & changes}
            )
            for name, group in self.groups().items()
        }
        config = dataclasses.replace(self, **groups, **changes)
        config.check()
        return config

    def groups(self) -> dict[str, Any]:
        """Return the groups of settings by name, without the model."""
        return {name: getattr(self, name) for name in GROUPS}

    def flat(self) -> dict[str, Any]:
        """Return all settings, the model's included, in one dict by name."""
        found = {
            name: value for name, value in vars(self).items() if name not in (*GROUPS, "model")
        }
        for group in (*self.groups().values(), self.model):
            found |= vars(group)
        return found


# --- config.json ----------------------------------------------------------------------------------

GROUPS = ("data", "stages", "optim", "speed", "output")
"""Fields of :class:`TrainConfig` that are groups of settings."""
CHANGEABLE = {
    "config", "resume", "overwrite", "name", "out", "workers", "save_every", "save_minutes",
    "device", "shard", "compile", "cuda_graph", "grad_accum_steps",
    "grad_checkpoint", "compare_memoryless", "pictures", "viewer",
}  # fmt: skip
"""Settings that may change on resume, because they affect the result only by rounding."""


def write_settings(config: TrainConfig) -> None:
    """Write ``config.json`` into the run's folder."""
    text = json.dumps(dataclasses.asdict(config), indent=1, default=str)  # paths
    write_text(config.folder / CONFIG, text + "\n")


def load_settings(folder: Path, **changes: Any) -> TrainConfig:
    """Read the settings of the run in ``folder``, which may have moved, with some replaced.

    Raises :class:`UserError` if there is no run.
    """
    if folder.name in ("", ".."):
        folder = folder.resolve()
    file = folder / CONFIG
    if not file.is_file():
        found = f"one without {CONFIG}" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: expected the folder of a run, got {found}")
    return read_settings(file, **{"out": folder.parent, "name": folder.name} | changes)


def read_settings(file: Path, **changes: Any) -> TrainConfig:
    """Read the settings in a file such as ``config.json``, and replace some.

    Settings that the file does not contain have their defaults.
    """
    saved = read_json(file, "the settings of a run")
    try:
        sizes = saved.pop("model", None)
        preset = IVCLConfig.preset(saved.get("preset", TrainConfig.preset))
        model = IVCLConfig.from_dict(sizes) if sizes else preset
        groups = {name: type(getattr(TrainConfig, name))(**saved.pop(name, {})) for name in GROUPS}
        config = TrainConfig(model=model, **groups, **saved)
        new = {"resume": None, "overwrite": False, "data_dir": Path(config.data.data_dir)}
        return config.replace(**new | changes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: expected the settings of a run, got others ({error})") from None
