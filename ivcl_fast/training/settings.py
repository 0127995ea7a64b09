"""What a training run is told: its flags, and how they are kept beside its results."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ivcl_fast.config import PRESETS, IVCLConfig
from ivcl_fast.data.registry import check_frame_labels, clip_frames, find_task
from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError

CONFIG = "config.json"
"""Name of the file in a run's folder that holds its settings."""

AT_LEAST_1 = (
    "pretrain_clips", "finetune_clips", "batch_size", "grad_accum_steps", "save_every",
    "train_videos", "val_videos",
)  # fmt: skip
AT_LEAST_0 = "backbone_lr_scale", "weight_decay", "warmup_steps"
ABOVE_0 = "lr", "finetune_lr", "clip_norm"


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a run. Lengths count clips, never seconds."""

    data: str = "synthetic"
    """A folder in the data set's format: cater:DIR, acre:DIR or something-else:DIR; or one of our
    making: synthetic (CATER, static camera), synthetic:moving, synthetic:acre-iid, -comp or -sys,
    synthetic:something-else."""
    task: str = "auto"
    """What to finetune for. CATER: localize (on a floor of 6x6 cells), localize_4x4, localize_8x8,
    actions_present, actions_order_uniq; Something-Else: compositional, fewshot_5shot, ...; auto:
    the data set's usual task."""
    preset: str = "tiny"
    """Model sizes: tiny, small, base64 or base224; the flags below replace single fields."""
    model: Annotated[IVCLConfig, tyro.conf.arg(name="")] = field(default_factory=IVCLConfig)
    stage: Literal["all", "pretrain", "finetune"] = "all"
    """Which stages to run; finetune alone starts from --init."""
    init: str = "random"
    """Weights to start from: random; the folder of an earlier run (its pretrained model) or of one
    of its models; a .safetensors file; or, for the image encoder, a ViT of the same width and
    depth: timm:NAME, or timm:PATH with timm's keys."""
    name: str | None = None
    """Folder of the run under --out; by default made from data, task and preset."""
    out: Path = Path("runs")
    """Where runs are kept."""
    resume: Path | None = None
    """Go on with the unfinished run in this folder, with the settings it was started with."""
    overwrite: bool = False
    """Delete a run of the same name first."""
    quick: bool = False
    """Everything once, tiny: shows within two minutes that it all runs; learns nothing."""
    pretrain_clips: int = 30_000
    """Clips that pretraining sees, repeats counted: epochs times training clips."""
    finetune_clips: int = 10_000
    """Clips that finetuning sees, repeats counted."""
    lr: float = 3e-3
    """Peak learning rate of pretraining."""
    finetune_lr: float = 3e-3
    """Peak learning rate of finetuning, for the head."""
    backbone_lr_scale: float = 0.5
    """Learning rate of the pretrained part, relative to the head's."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: for the blocks' matrices, AdamW for the rest; adamw: fused AdamW for everything."""
    batch_size: int = 16
    """Clips per optimiser step, over all ranks of torchrun: their number changes nothing."""
    grad_accum_steps: int = 1
    """Parts a step's batch, or a rank's share of it, is split into, to save memory."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """Learning rates are for --batch-size as it is (none), or for 16 clips, to be scaled by the
    root of batch/16 (sqrt, for adaptive optimisers) or by batch/16 (linear)."""
    weight_decay: float = 0.05
    """AdamW's; not applied to biases, norms, positions and tokens."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most a tenth of a stage."""
    label_fraction: float = 1.0
    """Share of the training videos (of ACRE: problems) that finetuning may use, to see what few
    labels are worth."""
    compare_memoryless: bool = True
    """Also measure what needs no memory (localisation): the last frame alone, a visible cone; or no
    reasoning (ACRE): counting when the machine was on."""
    pictures: bool = True
    """Draw what the models do for the report; ivcl_fast.visualize can do it later."""
    compare_scratch: bool = False
    """Also finetune without pretraining, for as long, and report it."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile)."""
    cuda_graph: bool = False
    """Record the training step once and start it whole: faster for small batches on one GPU."""
    grad_checkpoint: bool = False
    """Compute the blocks' activations again in backward: less memory, a third more time."""
    shard: bool = False
    """With torchrun: cut parameters and optimiser state in pieces over the ranks (FSDP2), to save
    memory; without it every rank has them whole (DDP)."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """bfloat16 autocast; auto: where the hardware has it."""
    deterministic: bool = False
    """Only algorithms that repeat bit for bit, where a GPU has faster ones; a CPU's always do."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Of the weights, the order of clips, the frames taken and the masks."""
    train_videos: int = 3000
    """Synthetic training videos."""
    val_videos: int = 600
    """Synthetic validation videos."""
    data_dir: Path = Path("data")
    """Where synthetic data is kept."""
    decoder: Literal["auto", "dali", "pyav"] = "auto"
    """Video decoder; auto: DALI where there is a GPU that it can decode on, else PyAV."""
    loader: Literal["store", "stream"] = "store"
    """store: decode every frame once, before training; stream: decode in every epoch."""
    placement: Literal["auto", "disk", "ram", "gpu"] = "auto"
    """Where the store is kept while training; auto: as near to the model as it fits."""
    workers: int | None = None
    """Processes that make and decode data; by default one per core."""
    save_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for names, least in ((AT_LEAST_1, 1), (AT_LEAST_0, 0)):
            for name in names:
                if not getattr(self, name) >= least:
                    raise UserError(f"--{name.replace('_', '-')}: must be at least {least}")
        for name in ABOVE_0:
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')}: must be above 0")
        if not 0 < self.label_fraction <= 1:
            raise UserError(
                f"--label-fraction: {self.label_fraction} is not a share above 0, at most 1"
            )
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"--grad-accum-steps: {self.grad_accum_steps} does not divide --batch-size, which "
                f"is {self.batch_size}"
            )

    @property
    def supervises(self) -> bool:
        """Whether the run pretrains on labels of frames."""
        return self.stage != "finetune" and self.model.supervised

    @property
    def folder(self) -> Path:
        """The run's folder."""
        data = self.data.replace(":", "-").replace("/", "-").strip("-.")
        default = f"{data}-{self.task}-{self.preset}" + ("-quick" if self.quick else "")
        return self.out / (self.name or default)


QUICK: dict[str, Any] = dict(
    pretrain_clips=96, finetune_clips=64, train_videos=48, val_videos=16, batch_size=16
)


def given(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag that sets other flags' defaults, read before all others."""
    value = None
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            value = arguments[at + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def parse(arguments: list[str], description: str | None = None) -> TrainConfig:
    """Flags to a config; preset, data set and ``--quick`` set the defaults of other flags.

    ``description``: what ``--help`` begins with.
    """
    preset = given(arguments, "--preset") or "tiny"
    if preset not in PRESETS:
        raise UserError(f"--preset: {preset!r} is not one of {', '.join(PRESETS)}")
    fixed = frames_by_default(preset, arguments)
    defaults: dict[str, Any] = dict(preset=preset, model=IVCLConfig.preset(preset, **fixed))
    if "--quick" in arguments:
        defaults |= dict(quick=True) | QUICK
    try:
        config = tyro.cli(
            TrainConfig,
            args=arguments,
            default=TrainConfig(**defaults),
            prog="python -m ivcl_fast.train",
            description=description,
            console_outputs=distributed.is_main(),
        )
        if config.resume is not None:
            return load_settings(config.resume, **changes(config, arguments))
        if config.supervises:
            check_frame_labels(config.data, config.model.objective)
        return dataclasses.replace(config, task=find_task(config.data, config.task))
    except UserError:
        raise
    except SystemExit:  # an unknown flag, or --help
        distributed.let_rank0_report_first()
        raise
    except ValueError as error:  # from IVCLConfig, naming the field
        field, colon, rest = str(error).partition(":")
        raise UserError(f"--{field.replace('_', '-')}{colon}{rest}") from None


def frames_by_default(preset: str, arguments: Sequence[str]) -> dict[str, int]:
    """Frames per clip, and those rebuilt, where the data set or another flag settles them."""
    if frames := clip_frames(given(arguments, "--data") or TrainConfig.data):
        return {"num_frames": frames, "num_query_frames": frames // 2 + 1}
    asked = given(arguments, "--num-frames") or ""
    if not asked.isdecimal() or int(asked) < 1:  # none, or one to be refused
        return {}
    usual = IVCLConfig.preset(preset).num_query_frames
    return {"num_query_frames": min(usual, int(asked))}


def changes(config: TrainConfig, arguments: list[str]) -> dict[str, Any]:
    """What other flags change of a run that ``--resume`` goes on with.

    Raises :class:`UserError` for one that would make it another run.
    """
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    fields = {flag[2:].removeprefix("no-").replace("-", "_"): flag for flag in flags}
    del fields["resume"]
    accepted = FREE - {"resume", "overwrite", "name", "out"}
    if fixed := sorted(fields[field] for field in fields.keys() - accepted):
        names = (f"--{field.replace('_', '-')}" for field in sorted(accepted))
        raise UserError(
            f"{', '.join(fixed)}: a run keeps its settings; accepted with --resume: "
            + ", ".join(names)
        )
    return {field: getattr(config, field) for field in fields}


def as_json(config: TrainConfig) -> dict[str, Any]:
    """The config as plain values, for ``config.json``."""
    plain = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


def from_json(plain: dict[str, Any]) -> TrainConfig:
    """The opposite of :func:`as_json`."""
    values: dict[str, Any] = plain | {
        "model": IVCLConfig.from_dict(plain["model"]),
        "out": Path(plain["out"]),
        "data_dir": Path(plain["data_dir"]),
        "resume": None,
        "overwrite": False,
    }
    return TrainConfig(**values)


def load_settings(folder: Path, **changes: Any) -> TrainConfig:
    """The settings of the run in ``folder``, wherever that lies now, with some replaced.

    Raises :class:`UserError` if there is no run.
    """
    try:
        saved = from_json(json.loads((folder / CONFIG).read_text()))
    except FileNotFoundError:
        raise UserError(f"{folder}: no run there ({CONFIG} is missing)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: not the settings of a run ({error})") from None
    return dataclasses.replace(saved, out=folder.parent, name=folder.name, **changes)


# Flags that may change between a start and its continuation: what is learnt stays the same.
FREE = {
    "resume", "overwrite", "name", "out", "workers", "save_every", "device", "placement", "shard",
    "compile", "cuda_graph", "compare_scratch", "compare_memoryless", "pictures",
}  # fmt: skip


def resolve(config: TrainConfig) -> TrainConfig:
    """The settings to run with: these, if neither another run nor a closed folder is in the way.

    A run of other settings that has kept nothing to go on from is not in the way.
    """
    place = next(path for path in (config.folder, *config.folder.parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise UserError(f"{config.folder}: {place} cannot be written to; choose another --out")
    if config.overwrite or not (differs := differing(config)):
        return config
    if not has_begun(config.folder):
        return dataclasses.replace(config, overwrite=True)
    raise UserError(
        f"{config.folder} holds a run with other settings ({', '.join(differs)}); "
        "choose another --name, or --overwrite it"
    )


def differing(config: TrainConfig) -> list[str]:
    """Which settings the run that lies in this one's folder has otherwise; none without one."""
    if not (config.folder / CONFIG).is_file():
        return []
    old, new = as_json(load_settings(config.folder)), as_json(config)
    return sorted(k for k in new if k not in FREE and old[k] != new[k])


def has_begun(folder: Path) -> bool:
    """Whether a stage of the run there has kept a checkpoint or its model."""
    return any(folder.glob("*/checkpoints/*")) or any(folder.glob("*/*.safetensors"))
