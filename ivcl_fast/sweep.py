"""``python -m ivcl_fast.sweep STUDY``: one question, asked with several seeds, in one table.

Every variant is pretrained once and finetuned with every seed; all else is equal. Flags of
``ivcl_fast.train`` (``--data``, ``--preset``, ``--pretrain-clips``, ...) apply to every run. The
same command again continues a stopped study. Several GPUs share the runs; ``--parallel`` does the
same with a CPU's cores, which uses them better when models are small.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ivcl_fast.errors import run_command
from ivcl_fast.studies.definitions import STUDIES
from ivcl_fast.studies.runner import run_study
from ivcl_fast.training.loop import Interrupted


@dataclass(frozen=True)
class SweepConfig:
    """Which study to run, and how often."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")]
    """pretraining, supervision, slots, masking, context, encoder, data, long or causes."""
    seeds: int = 3
    """Finetunings of every variant."""
    parallel: int | None = None
    """Runs at a time: by default one per GPU; on a CPU one, or as many that share its cores."""
    out: Path = Path("sweeps")
    """Folder that holds the studies."""


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config, rest = tyro.cli(
        SweepConfig,
        prog="python -m ivcl_fast.sweep",
        description=__doc__ + "".join(f"\n\n{k}: {s.question}" for k, s in STUDIES.items()),
        return_unknown_args=True,
    )
    try:
        folder = run_study(config.study, tuple(rest), config.out, config.seeds, config.parallel)
    except Interrupted as stop:
        print(f"stopped by {stop}; the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"study: {folder / 'study.md'}")


if __name__ == "__main__":
    run_command(main)
