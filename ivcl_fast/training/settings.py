"""Settings of a training run, in groups, and their form in ``config.json``."""

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
from ivcl_fast.training.viewers import Viewer

MOST_CLIPS = 1_000_000
"""Clips per step, at most."""
CONFIG = "config.json"
"""Name of the file in a run's folder that holds its settings."""


@dataclass(frozen=True)
class StagesConfig:
    """What to train, from which weights, and for how long. Lengths count clips, never seconds."""

    stage: Literal["all", "pretrain", "finetune"] = "all"
    """Stages to run; finetune alone starts from --init."""
    init: str = "random"
    """Weights to start from: random; the folder of an earlier run (its pretrained model) or of one
    of its models; a .safetensors file; a model of the package (ivcl_fast/tiny-pretrained); or,
    for the image encoder, a ViT of the same width and depth: timm:NAME, or timm:PATH for a file
    with timm's keys. Sizes that neither flags nor --preset give are those of its model, except for
    ViTs of timm and the number of frames."""
    pretrain_clips: int = 20_000
    """Clips seen in pretraining, repetitions included."""
    finetune_clips: int = 5_000
    """Clips seen in finetuning, repetitions included."""
    last_frame_clips: int | None = None
    """Clips of which finetuning sees the last frame alone, at a fraction of the cost, before whole
    ones. Default for localisation: four times --finetune-clips, but at most four passes over the
    training videos; for other tasks, and from random weights: none. With --frame-labels, any frame
    instead of the last one, and any number of passes."""
    label_fraction: float = 1.0
    """Fraction of the training videos (ACRE: problems) that finetuning may use."""
    freeze_encoder: bool = False
    """Finetune on whole clips the temporal transformer and the head alone. The image encoder
    computes the slots of each clip once, so that twenty times as many --finetune-clips take as
    long. The frames of a clip are always the same then, and --mirror has no effect. Random weights
    (--compare-scratch) are not frozen."""
    slot_noise: float = 0.5
    """With --freeze-encoder: noise on the slots in training, relative to their standard deviation,
    so that the model does not memorise clips that it sees so often."""
    frame_labels: bool = False
    """Finetune on the snitch's cell in every frame, from CATER's scenes, instead of that in the
    last frame. IV-CL does not: results are marked \"with labels of all frames\"."""
    compare_memoryless: bool = True
    """Also report baselines. Localisation: a model that sees only the last frame, a guess under a
    visible cone, and a tracker that is told what the frames show; ACRE: counting."""
    compare_scratch: bool = False
    """Also finetune from random weights, on as many whole clips, and report its scores."""

    def check(self) -> None:
        require_at_least(self, 1, "pretrain_clips", "finetune_clips")
        require_at_least(self, 0, "slot_noise", "last_frame_clips")
        if not 0 < self.label_fraction <= 1:
            raise UserError(
                f"--label-fraction: expected above 0, at most 1, got {self.label_fraction}"
            )

    @property
    def clips(self) -> dict[str, int]:
        """Clips seen in each of the stages that are run."""
        lengths = {"pretrain": self.pretrain_clips, "finetune": self.finetune_clips}
        return lengths if self.stage == "all" else {self.stage: lengths[self.stage]}


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated."""

    batch_size: int = 16
    """Clips per optimiser step, over all ranks."""
    grad_accum_steps: int = 1
    """Parts that a rank's batch is split into to save memory; their gradients are accumulated."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices between hidden layers, AdamW for the rest; adamw: AdamW for
    all."""
    lr: float = 3e-3
    """Peak learning rate of pretraining."""
    finetune_lr: float = 3e-3
    """Peak learning rate of the head in finetuning."""
    backbone_lr_scale: float = 0.5
    """Learning rate of the pretrained weights in finetuning, relative to the head's."""
    whole_clip_lr_scale: float = 0.3
    """Learning rate of finetuning on whole clips after last frames, relative to that on last
    frames; no effect with --freeze-encoder."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """none: learning rates are used as given; sqrt, linear: they are given for 16 clips, and
    multiplied by sqrt(batch/16) or batch/16."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most a tenth of a stage; a cosine decay to zero follows."""
    weight_decay: float = 0.05
    """Weight decay; not applied to biases, norms, positions and tokens."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; above it, the gradient is scaled down."""
    zero_init: bool = True
    """Start blocks without loaded weights as the identity, with zeros in the matrices at the end of
    their branches; otherwise these are random."""

    def check(self) -> None:
        require_at_least(self, 1, "grad_accum_steps")
        require_at_least(self, 0, "backbone_lr_scale", "whole_clip_lr_scale")
        require_at_least(self, 0, "weight_decay", "warmup_steps")
        require_above(self, 0, "lr", "finetune_lr")
        require_above(self, 0, "clip_norm", most=math.inf)  # inf: gradients are not scaled
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
    """Mixed precision by bfloat16 autocast; auto: where the hardware is fast at it."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile."""
    cuda_graph: bool = True
    """Run the training step as a CUDA graph on a single NVIDIA GPU; several GPUs compile the blocks
    instead. No effect on a CPU."""
    grad_checkpoint: bool = False
    """Recompute the blocks' activations in the backward pass: less memory, a third more time."""
    shard: bool = False
    """Shard parameters and optimiser state over the ranks (FSDP2) instead of replicating them
    (DDP); needs torchrun."""
    deterministic: bool = False
    """Repeat bit for bit: only deterministic algorithms on a GPU, always 4 threads on a CPU.
    Without this flag, a run on a CPU repeats if the number of threads is the same."""


@dataclass(frozen=True)
class OutputConfig:
    """Where results go."""

    out: Path = Path("runs")
    """Folder that holds the runs."""
    name: str | None = None
    """Name of the run's folder in --out; by default made from data, task and preset."""
    resume: Path | None = None
    """Continue the unfinished run in this folder with its own settings, which other flags may not
    change, except those that leave the result as it is."""
    overwrite: bool = False
    """Delete an earlier run of the same name first, instead of continuing or keeping it."""
    pictures: bool = True
    """Draw the report's pictures."""
    viewer: Viewer = "tensorboard"
    """Program that shows the curves while the run trains: tensorboard, wandb (Weights & Biases),
    mlflow, or none. metrics.jsonl is written anyway."""
    save_every: int = 500
    """Steps between checkpoints."""
    save_minutes: float = 10.0
    """Minutes between checkpoints where --save-every takes longer."""

    def check(self) -> None:
        require_at_least(self, 1, "save_every")
        require_above(self, 0, "save_minutes", most=math.inf)  # inf: steps alone count
        name = PurePath(self.name or "run")
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise UserError(f"--name: expected the name of a folder in --out, got {self.name!r}")


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    preset: str = "tiny"
    """Model sizes: tiny, small, base64 or base224; flags of the model replace single values."""
    quick: bool = False
    """Run every part once on little data, in a minute or two; the model learns nothing."""
    seed: int = 0
    """Seed of the weights, the order of clips, the sampled frames and the masks."""
    data: OmitArgPrefixes[DataConfig] = DataConfig()
    stages: OmitArgPrefixes[StagesConfig] = StagesConfig()
    optim: OmitArgPrefixes[Annotated[OptimConfig, arg(name="optimiser")]] = OptimConfig()
    model: OmitArgPrefixes[IVCLConfig] = IVCLConfig()
    speed: OmitArgPrefixes[SpeedConfig] = SpeedConfig()
    output: OmitArgPrefixes[OutputConfig] = OutputConfig()

    def check(self) -> None:
        """Raise :class:`UserError`, naming the flag, for a value that is not accepted."""
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed: expected 0 to 2^63 - 1, got {self.seed}")
        for group in (self.data, self.stages, self.optim, self.output):
            group.check()
        freezes = self.stages.freeze_encoder
        if freezes and self.model.objective == "joint":
            raise UserError(
                "--freeze-encoder: expected an encoder of single frames, got --objective joint"
            )
        random = self.stages.init == "random" or (
            self.model.objective == "slot_attention" and timm_weights.is_timm(self.stages.init)
        )  # a ViT has no slots that compete
        if freezes and self.stages.stage == "finetune" and random:
            raise UserError(
                "--freeze-encoder: expected --init with a pretrained model, or --stage all, got "
                "random weights"
            )

    @property
    def frame_label_kinds(self) -> list[FrameLabelKind]:
        """The kinds of labels of single frames that the run learns from."""
        kinds: list[FrameLabelKind] = []
        if self.stages.stage != "finetune" and self.model.supervised:
            kinds.append(cast(FrameLabelKind, self.model.objective))
        if self.stages.stage != "pretrain" and self.stages.frame_labels:
            kinds.append("cells")
        return kinds

    @property
    def folder(self) -> Path:
        """The run's folder."""
        source = self.data.source.replace(":", "-").replace("/", "-").strip("-.")
        default = f"{source}-{self.data.task}-{self.preset}" + ("-quick" if self.quick else "")
        return self.output.out / (self.output.name or default)

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a checked copy with some settings changed, by their own names (``lr``, ``out``).

        ``model`` is an :class:`IVCLConfig`; ``source`` is what ``--data`` names.
        """
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
        """Return all settings by name, side by side, those of the model included."""
        found = {
            name: value for name, value in vars(self).items() if name not in (*GROUPS, "model")
        }
        for group in (*self.groups().values(), self.model):
            found |= vars(group)
        return found


# --- config.json ----------------------------------------------------------------------------------

GROUPS = ("data", "stages", "optim", "speed", "output")
"""The fields of :class:`TrainConfig` that are groups of settings."""
CHANGEABLE = {
    "resume", "overwrite", "name", "out", "workers", "save_every", "save_minutes", "device",
    "placement", "require_all", "shard", "compile", "cuda_graph", "grad_accum_steps",
    "grad_checkpoint", "compare_scratch", "compare_memoryless", "pictures", "viewer",
}  # fmt: skip
"""Settings that may change when a run is resumed: they change its result by rounding at most."""


def write_settings(config: TrainConfig) -> None:
    """Write ``config.json`` into the run's folder."""
    text = json.dumps(dataclasses.asdict(config), indent=1, default=str)  # paths
    write_text(config.folder / CONFIG, text + "\n")


def load_settings(folder: Path, **changes: Any) -> TrainConfig:
    """Read the settings of the run in ``folder``, and replace some.

    ``out`` and ``name`` are those of ``folder``, also if the run was moved. Raises
    :class:`UserError` if there is no run.
    """
    if folder.name in ("", ".."):
        folder = folder.resolve()
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{folder}: expected the folder of a run, got one without {CONFIG}")
    saved = read_json(file, "the settings of a run")
    if isinstance(saved, dict) and isinstance(saved.get("data"), str):
        raise UserError(f"{file}: expected settings of this version, got those of an older one")
    try:
        model = IVCLConfig.from_dict(saved.pop("model"))
        groups = {name: type(getattr(TrainConfig, name))(**saved.pop(name)) for name in GROUPS}
        config = TrainConfig(model=model, **groups, **saved)
        place = {"out": folder.parent, "name": folder.name, "resume": None, "overwrite": False}
        return config.replace(data_dir=Path(config.data.data_dir), **place | changes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: expected the settings of a run, got others ({error})") from None
