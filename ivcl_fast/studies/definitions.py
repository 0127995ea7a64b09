"""The named studies of ``ivcl_fast.sweep``: what is varied, everything else being equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from ivcl_fast.config import OBJECTIVE_NAMES, SupervisedObjective
from ivcl_fast.errors import UserError


@dataclass(frozen=True)
class Variant:
    """One line of a study's table. Flags are those of ``ivcl_fast.train``."""

    label: str
    pretrain: tuple[str, ...] | None = ()
    """Flags of pretraining; None: no pretraining."""
    model: tuple[str, ...] = ()
    """Flags of both stages."""
    finetune: tuple[str, ...] = ()
    """Flags of finetuning."""
    data: str | None = None
    """Its own ``--data``, for both stages; None: whatever the command says."""
    task: str | None = None
    """Its own ``--task``."""


@dataclass(frozen=True)
class Study:
    """Variants of one thing."""

    question: str
    varied: str
    """What is varied, in words: the axis of the figure."""
    variants: tuple[Variant, ...]
    """Those of one data set and task share a table."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """Flags of all its runs, with their values, unless the command gives them."""

    def flags(self, common: tuple[str, ...], quick: bool) -> tuple[str, ...]:
        """Flags of all its runs: its budget, unless ``quick``, then a command's, which win."""
        budget = () if quick else self.budget.items()
        return *(word for flag, value in budget for word in (flag, str(value))), *common

    @property
    def varied_flags(self) -> set[str]:
        """Names of the flags that its variants set."""
        flags = (
            flag for v in self.variants for flag in (*v.model, *(v.pretrain or ()), *v.finetune)
        )
        return {flag_name(flag) for flag in flags if flag.startswith("--")}

    @property
    def brings_data(self) -> bool:
        """Whether its variants have data sets of their own."""
        return any(variant.data is not None for variant in self.variants)


def flag_name(flag: str) -> str:
    """``num-slots`` of ``--num-slots``, ``--num_slots=4``, or of the ``--no-`` of a switch."""
    return flag.partition("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")


IV_CL = Variant(OBJECTIVE_NAMES["ivcl"])
IMAGE_MAE = Variant(OBJECTIVE_NAMES["mae"], pretrain=("--objective", "mae"))
JOINT = Variant(OBJECTIVE_NAMES["joint"], model=("--objective", "joint"))
COMPARED = replace(IV_CL, finetune=("--compare-memoryless",))
"""IV-CL, with rows of what needs no memory, or no reasoning."""
NONE = Variant("none", pretrain=None)


SUPERVISED = tuple(
    Variant(OBJECTIVE_NAMES[labels], pretrain=("--objective", labels))
    for labels in get_args(SupervisedObjective)
)
"""By kind of labels of single frames, which CATER alone has."""


def on(data: str, task: str, *others: Variant, first: Variant = IV_CL) -> tuple[Variant, ...]:
    """The main ways to pretrain, and others, on a data set and task of their own."""
    variants = first, IMAGE_MAE, *others, NONE
    return tuple(replace(variant, data=data, task=task) for variant in variants)


def budget(pretrain_clips: int, finetune_clips: int) -> dict[str, float]:
    """Clips to learn from, of training videos that all studies with a budget share."""
    return {
        "--pretrain-clips": pretrain_clips,
        "--finetune-clips": finetune_clips,
        "--train-videos": 24_000,
        "--val-videos": 1000,
    }


ABLATION = budget(pretrain_clips=16_000, finetune_clips=8_000)
"""Pretraining has just left its plateau, and finetuning has to lean on it."""


def _each(flag: str, values: tuple[float, ...]) -> tuple[Variant, ...]:
    """A variant per value of a model's flag."""
    return tuple(Variant(str(value), model=(flag, str(value))) for value in values)


STUDIES = {
    "pretraining": Study(
        "Does self-supervised video pretraining help?",
        "pretraining",
        (COMPARED, IMAGE_MAE, NONE),
        # Memory is learnt last, and it takes many videos to tell it from a good guess.
        {
            **budget(pretrain_clips=100_000, finetune_clips=60_000),
            "--val-videos": 4000,
            "--mask-ratio": 0.5,
        },
    ),
    "supervision": Study(
        "Is pretraining on pixels as good as on labels?",
        "pretraining",
        (IV_CL, *SUPERVISED, NONE),
    ),
    "slots": Study(
        "How many slot tokens per frame?",
        "slots per frame",
        _each("--num-slots", (1, 2, 4, 8, 16)),
        ABLATION,
    ),
    "masking": Study(
        "How much of a frame should be masked in pretraining?",
        "mask ratio",
        _each("--mask-ratio", (0.25, 0.375, 0.5, 0.75, 0.875)),
        ABLATION,
    ),
    "context": Study(
        "What should the temporal transformer see, and how many frames be rebuilt?",
        "context",
        (
            *(
                Variant(f"slots, Q={q}", model=("--num-query-frames", str(q)))
                for q in (1, 4, 8, 16)
            ),
            Variant("slots and patches", model=("--context-tokens", "slots+patches")),
        ),
    ),
    "encoder": Study(
        "Is a factorised encoder as good as a joint one?",
        "encoder",
        (Variant("factorised"), JOINT),
    ),
    "data": Study(
        "How much does pretraining save in labels?",
        "labelled clips",
        tuple(
            Variant(
                f"{share:.0%}, {'pretrained' if pretrained else 'from scratch'}",
                pretrain=() if pretrained else None,
                finetune=("--label-fraction", str(share)),
            )
            for share in (0.1, 0.3, 1.0)
            for pretrained in (True, False)
        ),
    ),
    "long": Study(
        "Does it hold for a moving camera, and for actions?",
        "pretraining",
        (
            *on("synthetic:moving", "localize", JOINT, *SUPERVISED),
            *on("synthetic", "actions_present"),
            *on("synthetic", "actions_order_uniq"),
        ),
        budget(pretrain_clips=20_000, finetune_clips=16_000),
    ),
    "causes": Study(
        "Does it hold for reasoning about causes?",
        "pretraining",
        (
            *on("synthetic:acre-comp", "acre", first=COMPARED),
            *on("synthetic:acre-sys", "acre", first=COMPARED),
        ),
        # A panel holds up to six objects, and what they cause is learnt slowly, then at once.
        {**budget(pretrain_clips=30_000, finetune_clips=120_000), "--num-slots": 8},
    ),
}


def study_named(name: str) -> Study:
    """Raises :class:`UserError` for an unknown study."""
    if name not in STUDIES:
        raise UserError(f"study: {name!r} is not one of {', '.join(STUDIES)}")
    return STUDIES[name]
