"""The studies of ``ivcl_fast.sweep``: each varies one thing and keeps everything else equal."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ivcl_fast.config import OBJECTIVE_NAMES
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.baselines import FROM_SCRATCH
from ivcl_fast.training.settings import TrainConfig


@dataclass(frozen=True)
class Variant:
    """One row of a study's table. Flags are those of ``ivcl_fast.train``, as typed."""

    label: str
    """Name of the row."""
    pretrain: str | None = ""
    """Flags of pretraining; None: no pretraining."""
    model: str = ""
    """Flags of both stages."""
    finetune: str = ""
    """Flags of finetuning."""
    data: str = ""
    """Flags of both stages that choose the data; without, those of the command."""
    finetune_scale: int = 1
    """Clips of finetuning, as a multiple of the study's ``--finetune-clips``."""


@dataclass(frozen=True)
class Study:
    """A question, and the variants of training whose comparison answers it."""

    question: str
    varied: str
    """Description of what varies: the head of the table's first column."""
    variants: tuple[Variant, ...]
    """Variants of the same data set share a table."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """Flags of all runs and their values; flags of the command take precedence."""

    def quick(self) -> Study:
        """Return the study for ``--quick``: without its lengths, and with small batches."""
        return replace(self, budget={"--batch-size": 4})

    def flags(self, common: tuple[str, ...]) -> tuple[str, ...]:
        """Return the flags of all runs: ``common``, and the budget's unless it sets them."""
        given = names_of(common)
        left = {flag: value for flag, value in self.budget.items() if flag_name(flag) not in given}
        return *(str(word) for pair in left.items() for word in pair), *common

    @property
    def own_flags(self) -> set[str]:
        """Names of the flags that the variants set."""
        own = set[str]()
        for v in self.variants:
            flags = v.data, v.model, v.pretrain or "", v.finetune
            own |= names_of(shlex.split(" ".join(flags)))
        return own


def flag_name(flag: str) -> str:
    """Return the name of a flag: ``num-slots`` of ``--num_slots=4``, or of ``--no-num-slots``."""
    return flag.partition("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")


def names_of(words: Collection[str]) -> set[str]:
    """Return the names of the flags among the words of a command."""
    return {flag_name(word) for word in words if word.startswith("--")}


COMPARED = "--compare-memoryless"
"""Adds rows of the baselines without memory, or without reasoning."""
FROZEN = "--freeze-encoder"
"""After finetuning on last frames, the encoder computes each clip's slots once; then six times the
number of clips takes about the same time."""
REMEMBERING = "--num-slots 9 --temporal-depth 4 --no-zero-init"
"""Sizes with which the temporal transformer learns to remember, if each slot holds one object."""
FEW_FRAMES = "--num-frames 4 --num-query-frames 2 --batch-size 16"
"""Pretraining sees few frames per video, because more videos help more than more frames."""
COMPETING = "--objective slot_attention --num-slots 11 --patch-size 4 --depth 2 --temporal-depth 4"
"""Slot attention, with sizes at which each slot comes to hold one object."""
SLOT_NOISE = "--no-zero-init --slot-noise 0.15"
"""Most of the variance of a clip's slots is between slots; this noise is a quarter of the variation
between frames."""


def remembering(label: str, pretrain: str, finetune: str = "") -> Variant:
    """Return a variant of ``objects``: labels of all frames, and a frozen encoder."""
    finetune = f"{finetune} --frame-labels {FROZEN}"
    return Variant(label, f"{pretrain} {FEW_FRAMES}", REMEMBERING, finetune, finetune_scale=6)


IV_CL, IMAGE_MAE = OBJECTIVE_NAMES["ivcl"], OBJECTIVE_NAMES["mae"]
MAE = "--objective mae"

STUDIES = {
    "pretraining": Study(
        "Does self-supervised video pretraining help?",
        "pretraining",
        (
            Variant(IV_CL, finetune=f"{COMPARED} {FROZEN}", finetune_scale=6),
            Variant(IMAGE_MAE, MAE, finetune=FROZEN, finetune_scale=6),
            Variant(FROM_SCRATCH, None),
        ),
        # Models learn memory last, and it takes many videos to distinguish it from a good guess.
        {
            "--pretrain-clips": 40_000,
            "--finetune-clips": 20_000,
            "--train-videos": 24_000,
            "--val-videos": 4000,
            "--mask-ratio": 0.5,
        },
    ),
    "supervision": Study(
        "Is pretraining on pixels as good as pretraining on labels?",
        "pretraining",
        (
            Variant(IV_CL, finetune=COMPARED),
            Variant(IMAGE_MAE, MAE),
            Variant(OBJECTIVE_NAMES["classification"], "--objective classification"),
            Variant(OBJECTIVE_NAMES["detection"], "--objective detection"),
            # Last frames teach random weights little, so these get twice the number of whole clips.
            Variant(FROM_SCRATCH, None, finetune_scale=2),
        ),
        {"--val-videos": 2000},
    ),
    "objects": Study(
        "Does the model remember what it has seen, if each slot holds one object?",
        "pretraining",
        (
            remembering(IV_CL, "", COMPARED),
            remembering(IMAGE_MAE, MAE),
            Variant(  # last frames would change the slots, here and in the next variant
                OBJECTIVE_NAMES["slot_attention"],
                "--num-frames 4 --num-query-frames 2 --batch-size 8 --lr 1.5e-3",
                COMPETING,
                f"--frame-labels --last-frame-clips 0 {SLOT_NOISE} {FROZEN}",
                finetune_scale=6,
            ),
            remembering(OBJECTIVE_NAMES["objects"], "--objective objects", "--last-frame-clips 0"),
        ),
        {
            "--pretrain-clips": 96_000,
            "--finetune-clips": 30_000,
            "--train-videos": 24_000,
            "--val-videos": 4000,
            "--last-frame-clips": 96_000,
            "--batch-size": 32,
        },
    ),
    "causes": Study(
        "Does pretraining help to reason about causes?",
        "pretraining",
        tuple(
            replace(variant, data=f"--data synthetic:acre-{regime}")
            for regime in ("comp", "sys")
            for variant in (
                Variant(IV_CL, finetune=COMPARED),
                Variant(IMAGE_MAE, MAE),
                Variant(FROM_SCRATCH, None),
            )
        ),
        # A panel shows up to six objects, and their effects are learnt late, but then quickly.
        {
            "--pretrain-clips": 30_000,
            "--finetune-clips": 120_000,
            "--train-videos": 24_000,
            "--val-videos": 1000,
            "--num-slots": 8,
        },
    ),
    "compositional": Study(
        "Does pretraining help to recognise actions on objects that are new to them?",
        "pretraining",
        tuple(
            replace(variant, data=f"--data synthetic:something-else --task {split}")
            for split in ("compositional", "compositional_shuffled")
            for variant in (
                Variant(IV_CL),
                Variant(IMAGE_MAE, MAE),
                Variant(FROM_SCRATCH, None),
            )
        ),
    ),
}


FINETUNING = {
    "finetune-clips", "last-frame-clips", "label-fraction", "freeze-encoder", "slot-noise",
    "frame-labels", "finetune-lr", "backbone-lr-scale", "whole-clip-lr-scale", "readout", "task",
    "eval-clips",
}  # fmt: skip
"""Flags that only affect finetuning; their values share one pretraining."""


def study_of_flag(text: str) -> tuple[str, Study]:
    """Return the study that compares values of a flag, ``FLAG=A,B,...``, and its name.

    The values of a switch are ``true`` and ``false``. Raises :class:`UserError` for an unknown
    flag, and without two different values.
    """
    flag, _, listed = text.partition("=")
    name, values = flag_name(flag), listed.split(",")
    known = {"data" if field == "source" else field for field in TrainConfig().flat()}
    if name.replace("-", "_") not in known or not 2 <= len(values) == len(set(values)):
        raise UserError(
            f"--vary: expected a flag of ivcl_fast.train and its values, such as lr=1e-3,3e-3, got "
            f"{text!r}"
        )
    switch = {"true": f"--{name}", "false": f"--no-{name}"}
    variants = []
    for value in values:
        words = switch.get(value, f"--{name} {shlex.quote(value)}")
        if name in FINETUNING:
            variants.append(Variant(value, finetune=words))
        else:
            variants.append(Variant(value, model=words))
    return f"vary-{name}", Study(f"What does --{name} change?", f"--{name}", tuple(variants))
