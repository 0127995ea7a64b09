"""The named studies of ``ivcl_fast.sweep``: what is varied, everything else being equal."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError


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


@dataclass(frozen=True)
class Study:
    """Variants of one thing."""

    question: str
    varied: str
    """What is varied, in words: the axis of the figure."""
    variants: tuple[Variant, ...]


def _each(flag: str, values: tuple[float, ...]) -> tuple[Variant, ...]:
    """A variant per value of a model's flag."""
    return tuple(Variant(str(value), model=(flag, str(value))) for value in values)


STUDIES = {
    "pretraining": Study(
        "Does self-supervised video pretraining help?",
        "pretraining",
        (
            Variant("IV-CL", finetune=("--compare-memoryless",)),
            Variant("image MAE", pretrain=("--objective", "mae")),
            Variant("none", pretrain=None),
        ),
    ),
    "slots": Study(
        "How many slot tokens per frame?", "slots per frame", _each("--num-slots", (1, 2, 4, 8, 16))
    ),
    "masking": Study(
        "How much of a frame should be hidden in pretraining?",
        "mask ratio",
        _each("--mask-ratio", (0.25, 0.375, 0.5, 0.75, 0.875)),
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
        (Variant("factorised"), Variant("joint space-time", model=("--objective", "joint"))),
    ),
    "data": Study(
        "How much does pretraining save in labels?",
        "labelled clips",
        tuple(
            Variant(
                f"{share:.0%}, {'pretrained' if pretrained else 'from scratch'}",
                pretrain=() if pretrained else None,
                finetune=("--labelled", str(share)),
            )
            for share in (0.1, 0.3, 1.0)
            for pretrained in (True, False)
        ),
    ),
}


def study_named(name: str) -> Study:
    """Raises :class:`UserError` for an unknown study."""
    if name not in STUDIES:
        raise UserError(f"study: {name!r} is not one of {', '.join(STUDIES)}")
    return STUDIES[name]
