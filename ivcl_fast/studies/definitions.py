"""The studies of ``ivcl_fast.sweep``: each varies one thing and keeps everything else equal."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ivcl_fast.config import OBJECTIVE_NAMES
from ivcl_fast.errors import UserError


@dataclass(frozen=True)
class Variant:
    """One row of a study's table. Flags are those of ``ivcl_fast.train``."""

    label: str
    """Name of the row."""
    pretrain: tuple[str, ...] | None = ()
    """Flags of pretraining; None: no pretraining."""
    model: tuple[str, ...] = ()
    """Flags of both stages."""
    finetune: tuple[str, ...] = ()
    """Flags of finetuning."""
    data: str | None = None
    """Value of ``--data`` for both stages; None: that of the command."""
    task: str | None = None
    """Value of ``--task`` for finetuning; None: that of the command."""
    lengths: tuple[str, ...] = ()
    """Flags of pretraining's length and videos; left out of a ``--quick`` study."""
    finetune_scale: int = 1
    """Clips of finetuning, in those of the study's other variants."""


@dataclass(frozen=True)
class Study:
    """A question, and the variants of training whose comparison answers it."""

    question: str
    varied: str
    """What is varied, in words; the title of the figure's axis."""
    variants: tuple[Variant, ...]
    """Variants of the same data set and task share a table."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """Flags of all runs and their values; flags of the command take precedence."""
    axes: Mapping[str, Mapping[int, Variant]] = field(default_factory=dict)
    """Sizes that some variants differ in alone, in words, with the variant of each value. The page
    then has lines fitted to the scores, and the figure draws these over the sizes."""

    def quick(self) -> Study:
        """Return the study without lengths of its own, for ``--quick``.

        Its batches are small, so that a share of the videos fills one.
        """
        variants = tuple(replace(variant, lengths=()) for variant in self.variants)
        return replace(self, variants=variants, budget={"--batch-size": 4})

    def flags(self, common: tuple[str, ...], without: Collection[str] = ()) -> tuple[str, ...]:
        """Return the flags of all runs: what the command leaves of the budget, then its own.

        ``without``: names of flags to leave out of the budget.
        """
        given = {flag_name(word) for word in common if word.startswith("--")}.union(without)
        own = {flag: value for flag, value in self.budget.items() if flag_name(flag) not in given}
        return *(str(word) for pair in own.items() for word in pair), *common

    @property
    def own_flags(self) -> set[str]:
        """Names of the flags that the variants set."""
        own = {"data", "task"} if any(v.data is not None for v in self.variants) else set()
        for v in self.variants:
            words = (*v.model, *(v.pretrain or ()), *v.lengths, *v.finetune)
            own |= {flag_name(word) for word in words if word.startswith("--")}
        return own


def flag_name(flag: str) -> str:
    """Return the name of a flag: ``num-slots`` of ``--num_slots=4``, or of ``--no-num-slots``."""
    return flag.partition("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")


IV_CL = Variant(OBJECTIVE_NAMES["ivcl"])
IMAGE_MAE = Variant(OBJECTIVE_NAMES["mae"], pretrain=("--objective", "mae"))
JOINT = Variant(OBJECTIVE_NAMES["joint"], model=("--objective", "joint"))
COMPARED = replace(IV_CL, finetune=("--compare-memoryless",))
"""IV-CL, with rows of the baselines without memory, or without reasoning."""
NONE = Variant("none", pretrain=None)
SCRATCH = replace(NONE, finetune_scale=2)
"""Random weights see no last frames, which teach them little, but twice the whole clips: this takes
them longer than the others' finetuning."""
SUPERVISED = tuple(
    Variant(OBJECTIVE_NAMES[labels], pretrain=("--objective", labels))
    for labels in ("classification", "detection")
)
"""Supervised pretraining, by kind of frame labels; only CATER has them."""
OBJECTS = Variant(OBJECTIVE_NAMES["objects"], pretrain=("--objective", "objects"))

COMPETING = Variant(
    OBJECTIVE_NAMES["slot_attention"],
    pretrain=(
        *("--num-frames", "4", "--num-query-frames", "2", "--batch-size", "8", "--lr", "1.5e-3"),
    ),
    model=(
        *("--objective", "slot_attention", "--num-slots", "11", "--patch-size", "4"),
        *("--depth", "2", "--temporal-depth", "4"),
    ),
    finetune=(
        *("--frame-labels", "--last-frame-clips", "0", "--no-zero-init", "--slot-noise", "0.15"),
    ),
)
"""Slots that compete for patches, with the patches and the rate of learning that it takes for them
to hold an object each. Last frames would change them. Most of what their values vary by is which
slot it is: the noise is a quarter of what they vary by from frame to frame."""


def frozen(variant: Variant) -> Variant:
    """Return the variant with the encoder frozen after last frames, and six times as many clips.

    The encoder computes the slots of a clip once. So these clips take about as long as a sixth of
    their number as whole clips, and teach more.
    """
    finetune = *variant.finetune, "--freeze-encoder"
    return replace(variant, finetune=finetune, finetune_scale=6)


def remembering(variant: Variant, *finetune: str) -> Variant:
    """Return the variant with the temporal transformer and the labels that learn to remember.

    They do so if they are given one object in each slot. Pretraining sees few frames of each video:
    those of many videos teach more.
    """
    model = "--num-slots", "9", "--temporal-depth", "4", "--no-zero-init"
    few = "--num-frames", "4", "--num-query-frames", "2", "--batch-size", "16"
    finetune = *variant.finetune, "--frame-labels", *finetune
    variant = replace(variant, pretrain=(*(variant.pretrain or ()), *few))
    return frozen(replace(variant, model=model, finetune=finetune))


def on(data: str, task: str, *others: Variant, first: Variant = IV_CL) -> tuple[Variant, ...]:
    """Return the main kinds of pretraining, and ``others``, on a given data set and task."""
    variants = first, IMAGE_MAE, *others, NONE
    return tuple(replace(variant, data=data, task=task) for variant in variants)


def budget(pretrain_clips: int, finetune_clips: int) -> dict[str, float]:
    """Return the flags of a budget; all budgets use the same training videos."""
    return {
        "--pretrain-clips": pretrain_clips,
        "--finetune-clips": finetune_clips,
        "--train-videos": 24_000,
        "--val-videos": 1000,
    }


def each(flag: str, values: tuple[float, ...]) -> tuple[Variant, ...]:
    """Return a variant for every value of a flag of the model."""
    return tuple(Variant(str(value), model=(flag, str(value))) for value in values)


def sized(label: str, clips: int = 20_000, videos: int = 6000, width: int = 128) -> Variant:
    """Return a variant with this length of pretraining, and this width of all but the decoder."""
    return Variant(
        label,
        model=("--embed-dim", str(width), "--num-heads", str(width // 32)),
        data="synthetic",
        lengths=("--pretrain-clips", str(clips), "--train-videos", str(videos)),
    )


LARGEST = sized("20,000 clips, 6,000 videos, width 128")
SCALING = {
    "clips of pretraining": {
        2500: sized("2,500 clips", clips=2500),
        5000: sized("5,000 clips", clips=5000),
        10_000: sized("10,000 clips", clips=10_000),
        20_000: LARGEST,
    },
    "videos of pretraining": {
        375: sized("375 videos", videos=375),
        6000: LARGEST,
    },
    "width of the model": {
        32: sized("width 32", width=32),
        64: sized("width 64", width=64),
        128: LARGEST,
    },
}
"""The axes of ``scaling``; each holds the variant that is the largest in all of them."""
TABLES = "synthetic:states"
"""Frames are tables of the objects in view, so that there is nothing to learn but memory."""
ALL_LABELS = Variant("labels of all frames", None, finetune=("--frame-labels",), data=TABLES)

STUDIES = {
    "pretraining": Study(
        "Does self-supervised video pretraining help?",
        "pretraining",
        (frozen(COMPARED), frozen(IMAGE_MAE), NONE),
        # Memory is learnt last, and only many videos distinguish it from a good guess.
        {
            **budget(pretrain_clips=40_000, finetune_clips=20_000),
            "--val-videos": 4000,
            "--mask-ratio": 0.5,
        },
    ),
    "supervision": Study(
        "Is pretraining on pixels as good as pretraining on labels?",
        "pretraining",
        (COMPARED, IMAGE_MAE, *SUPERVISED, SCRATCH),
        {"--val-videos": 2000},
    ),
    "slots": Study(
        "How many slot tokens per frame?",
        "slots per frame",
        each("--num-slots", (1, 2, 4, 8, 16)),
    ),
    "masking": Study(
        "How much of a frame should be masked in pretraining?",
        "mask ratio",
        each("--mask-ratio", (0.25, 0.375, 0.5, 0.75, 0.875)),
    ),
    "context": Study(
        "What should the temporal transformer see, and how many frames should be reconstructed?",
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
    "scaling": Study(
        "What do more clips, more videos and a wider model give?",
        "pretraining",
        tuple(dict.fromkeys([LARGEST, *(v for axis in SCALING.values() for v in axis.values())])),
        axes=SCALING,
    ),
    "long": Study(
        "Does pretraining help with a moving camera, and with actions?",
        "pretraining",
        (
            *on("synthetic:moving", "localize", JOINT, *SUPERVISED),
            *on("synthetic", "actions_present"),
            *on("synthetic", "actions_order_uniq"),
        ),
        budget(pretrain_clips=20_000, finetune_clips=16_000),
    ),
    "memory": Study(
        "What makes memory learnable, if seeing is no task?",
        "labels, frames and layers",
        (
            replace(COMPARED, label="label of the last frame", pretrain=None, data=TABLES),
            ALL_LABELS,
            replace(
                ALL_LABELS, label="labels of all frames, 4 layers", model=("--temporal-depth", "4")
            ),
            replace(
                ALL_LABELS, label="labels of all frames, 32 frames", model=("--num-frames", "32")
            ),
            Variant("label of the last frame, after IV-CL", data=TABLES),
        ),
        {
            **budget(pretrain_clips=16_000, finetune_clips=16_000),
            "--train-videos": 8000,
            "--image-size": 32,
            "--last-frame-clips": 0,  # tables are seen without having been learnt
        },
    ),
    "objects": Study(
        "Does the model remember what it has seen, if each slot holds one object?",
        "pretraining",
        (
            remembering(COMPARED),
            remembering(IMAGE_MAE),
            frozen(COMPETING),
            remembering(OBJECTS, "--last-frame-clips", "0"),  # they would change the slots
        ),
        {
            **budget(pretrain_clips=96_000, finetune_clips=30_000),
            "--val-videos": 4000,
            "--last-frame-clips": 96_000,
            "--batch-size": 32,
        },
    ),
    "causes": Study(
        "Does pretraining help to reason about causes?",
        "pretraining",
        (
            *on("synthetic:acre-comp", "acre", first=COMPARED),
            *on("synthetic:acre-sys", "acre", first=COMPARED),
        ),
        # A panel shows up to six objects, and their effects are learnt late, but then quickly.
        {**budget(pretrain_clips=30_000, finetune_clips=120_000), "--num-slots": 8},
    ),
}


def find_study(name: str) -> Study:
    """Return the study of this name; raises :class:`UserError` if there is none."""
    if name not in STUDIES:
        raise UserError(f"study: {name!r} is not accepted; accepted: {', '.join(STUDIES)}")
    return STUDIES[name]
